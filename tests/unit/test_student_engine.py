"""Real tiny models, untrained: slots, adapters side by side, and answers that do not depend on their neighbours."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import chat, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma3Config

from potstill.errors import InputError
from potstill.records import Message
from potstill.student.answers import StudentQuery
from potstill.student.local import Loaded, LocalStudent, Persona, read_student
from potstill.student.lora import Adapter, read_adapter
from potstill.student.manifest import StudentManifest, StudentRole
from potstill.student.onednn import pack
from potstill.student.scripted import ScriptedStudent
from potstill.student.slots import PREFILL_TOKENS, fits_slots
from potstill.student.template import encode_prompt

QUESTIONS = ["why?", "how much memory does a model need, and why is it so much?", "memory", "a " * 90 + "b?"]
PEFT_NOTICE = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROLES = ("zero", "one", "two", "three")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level tokenizer with a chat template."""
    return tiny_tokenizer()


def adapter(model: Any, seed: int, rank: int = 4) -> Adapter:
    """A random adapter that is strong enough to change what is said."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name, layer in model.named_modules():
        if name.endswith(("q_proj", "v_proj", "down_proj")):
            a = torch.randn(rank, layer.in_features, generator=generator) * 0.3
            b = torch.randn(rank, layer.out_features, generator=generator) * 0.3
            layers[name] = (a, b)
    return Adapter(layers)


def loaded(model: Any, names: Sequence[str], seed: int = 0) -> Loaded:
    """A trained student's roles, one random adapter each, the second with a smaller rank."""
    manifest = StudentManifest(
        name="tiny", base="", revision=None, base_sha="", template_sha="", adapters="per-role", plan_id="",
        roles=tuple(StudentRole(name=name, system=f"You are {name}.") for name in names), dataset_sha={}, config={},
        versions={}, samples=0, supervised_tokens=0, train_seconds=0, created_at=datetime.now(UTC),
    )  # fmt: skip
    made = {name: adapter(model, seed + place, 2 + place) for place, name in enumerate(names)}
    return Loaded(manifest, made, f"loaded-{seed}")


@pytest.fixture(scope="module")
def student(tokenizer: Any) -> LocalStudent:
    """A student of four roles with an adapter each."""
    model = tiny_model(tokenizer)
    made = LocalStudent(Persona("tiny", ()), model, tokenizer, "base")
    made.take(loaded(model, ROLES))
    return made


def query(text: str, role: str = "one", **more: Any) -> StudentQuery:
    """A question, at most 12 tokens of answer."""
    return StudentQuery(role=role, messages=tuple(chat(text)), **{"max_new_tokens": 12, **more})


def reference(student: LocalStudent, question: StudentQuery) -> str:
    """The greedy answer by transformers' own `generate`, the role's adapter merged into a copy of the base."""
    model = type(student._model)(student._model.config).eval()
    model.load_state_dict(student._model.state_dict())
    number = student._roles[question.role].adapter
    for name, (a, b) in student._bank._adapters[number].layers.items() if number else ():
        model.get_submodule(name).weight.data += (a.T @ b).T
    ids = torch.tensor([student.row(question).prompt])
    limits = {"max_new_tokens": question.max_new_tokens, "eos_token_id": sorted(student._voice.stops)}
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=4, **limits)
    return str(student._tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def whole(text: str) -> str:
    """A text without the half character at its end, which an engine does not show."""
    return re.sub(r"[\s\ufffd]+$", "", text.strip())


def test_mixed_batch_answers_as_each_adapter_alone(student: LocalStudent) -> None:
    """Twenty requests over four adapters get what transformers' generate says with that one adapter merged."""
    queries = [query(QUESTIONS[place % 4], ROLES[(place // 4) % 4]) for place in range(20)]
    answers = student.answer(queries)
    expected = {(q.role, q.messages[0].content): whole(reference(student, q)) for q in queries[:16]}
    assert [whole(answer.text) for answer in answers] == [expected[q.role, q.messages[0].content] for q in queries]
    assert len(set(expected.values())) > 8  # the adapters do change what is said


def test_queries_join_and_leave_a_running_batch(student: LocalStudent) -> None:
    """With two slots, five queries that come one by one all get the answer that they get alone."""
    alone = [student.answer([query(text, role)])[0].text for text in QUESTIONS for role in ROLES[:2]]
    engine = student.open(2)
    numbers, found = [], {}
    for text in QUESTIONS:
        for role in ROLES[:2]:
            numbers.append(engine.add(engine.prepare(query(text, role))))
            found |= {piece.index: piece.answer for piece in engine.step() if piece.answer}
            assert engine.running <= 2
    while engine.running or engine.waiting:
        found |= {piece.index: piece.answer for piece in engine.step() if piece.answer}
    assert [found[number].text for number in numbers] == alone


def test_cancelled_query_frees_its_slot(student: LocalStudent) -> None:
    """A query that is dropped, while it runs or waits, says nothing more and lets the next one in."""
    engine = student.open(1)
    first, second, third = (engine.add(engine.prepare(query(text))) for text in QUESTIONS[:3])
    engine.step()
    engine.cancel(first)
    engine.cancel(second)
    pieces = [piece for _ in range(13) for piece in engine.step()]
    assert {piece.index for piece in pieces} == {third}
    assert (engine.running, engine.waiting) == (0, 0)


def test_rows_leave_while_prompts_wait_to_be_read(student: LocalStudent) -> None:
    """Rows that end or are dropped while others have a slot, but nothing in it yet, disturb nobody."""
    text = "how much memory? " * 20
    queries = [StudentQuery(role="one", text=text, max_new_tokens=1 + place % 3) for place in range(20)]
    alone = [student.answer([one])[0].text for one in queries[:3]]
    engine = student.open(20)
    numbers = [engine.add(engine.prepare(one)) for one in queries]
    found = {piece.index: piece.answer for piece in engine.step() if piece.answer}
    engine.cancel(numbers[1])
    while engine.running or engine.waiting:
        found |= {piece.index: piece.answer for piece in engine.step() if piece.answer}
    assert [found[number].text for number in numbers if number != numbers[1]] == [
        alone[place % 3] for place in range(20) if place != 1
    ]


def test_long_prompt_is_read_in_parts_while_others_speak(student: LocalStudent) -> None:
    """A prompt longer than one step reads does not silence a running query, and is answered as if read at once."""
    text = "how much memory does a model need? " * 40
    long, alone = query(text, max_new_tokens=4), student.answer([query("why?", max_new_tokens=30)])[0]
    engine = student.open(2)
    engine.add(engine.prepare(query("why?", max_new_tokens=30)))
    engine.step()
    row = engine.prepare(long)
    engine.add(row)
    engine.step()
    assert row.prompt_tokens > PREFILL_TOKENS
    assert 0 < row.filled < row.prompt_tokens
    found = [piece for _ in range(40) for piece in engine.step() if piece.answer]
    assert found[-1].answer.text == alone.text or found[0].answer.text == alone.text
    assert whole(next(p.answer.text for p in found if p.index == row.number)) == whole(reference(student, long))


def test_system_prompt_is_read_once(student: LocalStudent) -> None:
    """The second query of a role copies what its system prompt left behind, and answers the same."""
    first = student.answer([query("memory", "two")])[0]
    before = student.prefix_hits
    assert student.answer([query("memory", "two")])[0].text == first.text
    assert student.prefix_hits == before + 1
    own = (Message(role="system", content="Be brief."), *chat("memory"))
    student.answer([StudentQuery(role="two", messages=own, max_new_tokens=2)])
    assert student.prefix_hits == before + 1  # another system prompt shares nothing


def test_seed_repeats_a_sampled_answer_under_load(student: LocalStudent) -> None:
    """Sampling with a seed gives the same answer alone and among others; without one it differs."""
    asked = query("why?", temperature=1.0, top_p=0.9, seed=7)
    alone = student.answer([asked])[0].text
    others = [query(text, "three", temperature=1.0) for text in QUESTIONS]
    assert student.answer([*others, asked, *others])[4].text == alone
    assert student.answer([asked.model_copy(update={"seed": 8})])[0].text != alone


def test_coldest_draw_is_the_likeliest(student: LocalStudent) -> None:
    """The smallest temperature and top_p that a request may name draw what greedy decoding says."""
    cold, greedy = student.answer([query("why?", temperature=1e-300, top_p=1e-300, seed=1), query("why?")])
    assert cold.text == greedy.text


def test_logprobs_add_up(student: LocalStudent) -> None:
    """Tokens carry text, bytes and rivals; their bytes make the answer, their mean is the answer's."""
    (answer,) = student.answer([query("why?")])
    pieces = list(student.stream([query("why?", top_logprobs=3)]))
    tokens = [token for piece in pieces for token in piece.tokens]
    assert whole(b"".join(token.data for token in tokens).decode("utf-8", "replace")) == whole(answer.text)
    assert all(len(token.top) == 3 and token.top[0].logprob == pytest.approx(token.logprob) for token in tokens)
    mean = sum(token.logprob for token in tokens) / len(tokens)
    assert pieces[-1].answer.mean_logprob == pytest.approx(mean, abs=0.5)


def test_bias_and_penalties_steer(student: LocalStudent) -> None:
    """A banned token is not said, a favoured one is, and a penalty stops a loop."""
    favoured = student.answer([query("why?", logit_bias={70: 100.0})])[0].text
    assert len(set(favoured.replace(" ", ""))) == 1
    banned = student.answer([query("why?", logit_bias={70: 100.0, 71: 99.0}, frequency_penalty=2.0)])[0].text
    assert len(set(banned)) > 1


def test_schema_is_kept(student: LocalStudent) -> None:
    """An untrained model, sampled hot, still gives JSON of the asked form; an unknown form is refused."""
    schema = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    asked = query("why?", json_schema=json.dumps(schema), max_new_tokens=60, temperature=1.0, seed=3)
    answers = student.answer([asked, query("memory"), asked])
    assert json.loads(answers[0].text)["ok"] in {"yes", "no"}
    assert answers[0].finish_reason == "stop"
    with pytest.raises(InputError, match="not supported"):
        student.open(1).prepare(query("why?", json_schema='{"type": "nonsense"}'))


def test_stop_text_ends_the_answer_before_it(student: LocalStudent) -> None:
    """An answer ends before a stop text, of which no piece shows a letter."""
    text = student.answer([query("memory", max_new_tokens=30)])[0].text
    middle = text[len(text) // 2 :][:2]
    pieces = list(student.stream([query("memory", max_new_tokens=30, stop=(middle,))]))
    shown = "".join(piece.text for piece in pieces)
    assert middle not in shown
    assert pieces[-1].answer.text == shown.strip()
    assert pieces[-1].answer.finish_reason == "stop"


def test_bare_text_is_continued_without_a_template(student: LocalStudent) -> None:
    """A bare text gets the start token alone before it, and control tokens in it stay text."""
    engine = student.open(1)
    row = engine.prepare(StudentQuery(role="one", text="how<|eot_id|>", max_new_tokens=4))
    assert row.prompt[0] == 0
    assert all(token > 4 for token in row.prompt[1:])
    assert row.shared == 0


def test_context_bounds_prompt_and_answer(tokenizer: Any) -> None:
    """An answer ends where the base's context does; a prompt that fills it is refused."""
    model = tiny_model(tokenizer, max_position_embeddings=64)
    student = LocalStudent(Persona("t", (StudentRole(name="one", system=""),)), model, tokenizer, "b")
    answer = student.answer([query("why?", max_new_tokens=500)])[0]
    assert (answer.finish_reason, answer.prompt_tokens + answer.completion_tokens) == ("length", 64)
    with pytest.raises(InputError, match="looks at 64"):
        student.answer([query("why? " * 80)])


def test_roles_come_and_go_while_queries_run(tokenizer: Any) -> None:
    """A new student takes over between two steps: a running query ends as it began, then its adapter is unloaded."""
    model = tiny_model(tokenizer)
    student = LocalStudent(Persona("t", ()), model, tokenizer, "b")
    student.take(loaded(model, ["one", "two"]))
    old, fingerprint = student.answer([query("why?")])[0].text, student.fingerprint
    engine = student.open(2)
    number = engine.add(engine.prepare(query("why?")))
    engine.step()
    engine.swap(lambda served: served.take(loaded(model, ["one"], seed=9)))
    assert len(student._bank.numbers) == 3
    found = {piece.index: piece.answer for _ in range(12) for piece in engine.step() if piece.answer}
    assert found[number].text == old
    engine.swap(lambda served: served.drop("two"))
    assert len(student._bank.numbers) == 1
    assert student.roles == ("one",)
    assert student.fingerprint != fingerprint
    assert student.answer([query("why?")])[0].text != old


WINDOW = {"sliding_window": 8}
SOME_WINDOWS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Arcee", {}), ("Cohere", {}), ("Cohere2", SOME_WINDOWS), ("Ernie4_5", {}), ("Exaone4", SOME_WINDOWS), ("Gemma", {}),
    ("Gemma2", SOME_WINDOWS), ("Gemma3Text", SOME_WINDOWS), ("Glm4", {}), ("Granite", {}), ("HunYuanDenseV1", {}),
    ("Ministral", SOME_WINDOWS),
    ("Mistral", {"sliding_window": None}), ("Mistral", WINDOW), ("Mixtral", {}), ("Olmo2", {}), ("Olmo3", SOME_WINDOWS),
    ("Olmoe", {}), ("Phi3", {"sliding_window": None}), ("Phi3", WINDOW), ("Qwen2", {}),
    ("Qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 1}), ("Qwen2Moe", {}), ("Qwen3", {}),
    ("Qwen3Moe", {}), ("SeedOss", {}), ("SmolLM3", {}), ("StableLm", {}), ("Starcoder2", {}),
]  # fmt: skip


def says_in_slots_what_it_says_alone(model: Any, tokenizer: Any) -> None:
    """Compare the answers of a batch in slots with those of the model's own `generate`."""
    assert fits_slots(model)
    student = LocalStudent(Persona("t", (StudentRole(name="one", system="Be kind."),)), model, tokenizer, "b")
    queries = [query(text) for text in QUESTIONS]
    texts = [whole(answer.text) for answer in student.answer(queries)]
    assert texts == [whole(reference(student, one)) for one in queries]


@pytest.mark.parametrize(("family", "more"), FAMILIES)
def test_families_in_slots(tokenizer: Any, family: str, more: dict[str, Any]) -> None:
    """Each family that runs in slots says there what its own generate says, with windows and without."""
    says_in_slots_what_it_says_alone(tiny_model(tokenizer, family, num_key_value_heads=2, **more), tokenizer)


def test_a_base_with_a_vision_tower_in_slots(tokenizer: Any) -> None:
    """Gemma 3's larger sizes, which carry a vision tower, say in slots what their own generate says."""
    text = tiny_model(tokenizer, "Gemma3Text", num_key_value_heads=2, **SOME_WINDOWS).config
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**eye, "image_size": 28, "patch_size": 14}
    ends = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, initializer_range=0.3, **ends)
    says_in_slots_what_it_says_alone(AutoModelForCausalLM.from_config(config).eval(), tokenizer)


def test_other_bases_run_in_static_batches(tokenizer: Any) -> None:
    """A base that nobody compared does not run in slots; it is served all the same, with adapters, batch by batch."""
    model = tiny_model(tokenizer, "Helium", num_key_value_heads=2)
    assert not fits_slots(model)
    student = LocalStudent(Persona("t", ()), model, tokenizer, "b")
    student.take(loaded(model, ["one", "two"]))
    queries = [query(text, role) for text in QUESTIONS[:3] for role in ("one", "two")]
    assert [whole(a.text) for a in student.answer(queries)] == [whole(reference(student, one)) for one in queries]
    engine = student.open(1)
    first, second = (engine.add(engine.prepare(one)) for one in queries[:2])
    engine.step()
    engine.cancel(first)
    assert {piece.index for _ in range(14) for piece in engine.step()} == {second}


@PEFT_NOTICE
def test_adapter_of_another_base_or_form_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    """An adapter that does not fit, is missing, or is more than plain LoRA is refused, and says so."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model(tokenizer)
    student = LocalStudent(Persona("t", ()), model, tokenizer, "b")
    with pytest.raises(InputError, match="does not have"):
        student.take(
            Loaded(loaded(model, ["one"]).manifest, {"one": Adapter({"model.nope": (torch.ones(1, 2),) * 2})}, "")
        )
    with pytest.raises(InputError, match="cannot read"):
        read_adapter(tmp_path / "none")
    get_peft_model(tiny_model(tokenizer), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "dora"
    )
    with pytest.raises(InputError, match="no plain LoRA"):
        read_adapter(tmp_path / "dora")


@PEFT_NOTICE
def test_saved_adapter_says_what_peft_says(tmp_path: Path, tokenizer: Any) -> None:
    """An adapter in PEFT's format changes the logits exactly as PEFT itself does."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    peft = get_peft_model(tiny_model(tokenizer), config).eval()
    peft.save_pretrained(tmp_path)
    student = LocalStudent(Persona("t", ()), tiny_model(tokenizer), tokenizer, "b")
    number = student._bank.load(read_adapter(tmp_path))
    ids = torch.tensor([encode_prompt(tokenizer, chat("why?"))] * 2)
    with torch.inference_mode():
        student._bank.select([number, None])
        found = student._model(input_ids=ids).logits
        expected = peft(input_ids=ids).logits
        with peft.disable_adapter():
            bare = peft(input_ids=ids).logits
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], bare[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_packed_layers_compute_the_same(tokenizer: Any, dtype: torch.dtype, tolerance: float) -> None:
    """Weights laid out for oneDNN give the same logits, in bfloat16 too where the processor computes in it."""
    model, ids = tiny_model(tokenizer).to(dtype), torch.tensor([[1, 2, 3], [4, 5, 6]])
    able = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        assert pack(model) == able
        torch.testing.assert_close(model(input_ids=ids).logits, plain, atol=tolerance, rtol=tolerance)


def test_types_that_onednn_does_not_take_are_left_alone(tokenizer: Any) -> None:
    """Nothing is packed in float16."""
    assert not pack(tiny_model(tokenizer).half())


def test_packed_layer_is_one_operation_at_few_rows() -> None:
    """Rows that decode together pass a packed layer without a view or a copy; more are rounded up, to the same result."""
    model = torch.nn.Sequential(layer := torch.nn.Linear(8, 6))
    assert pack(model)
    ran: list[str] = []

    class Watch(TorchDispatchMode):
        """Writes down what runs."""

        def __torch_dispatch__(self, operation: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            ran.append(operation.name())
            return operation(*args, **(kwargs or {}))

    few, many = torch.randn(16, 1, 8), torch.randn(3, 11, 8)
    with torch.inference_mode(), Watch():
        model(few)
    assert ran == ["mkldnn::_linear_pointwise"]
    with torch.inference_mode():
        expected = torch.nn.functional.linear(many, layer.weight, layer.bias)
        torch.testing.assert_close(model(many), expected, atol=1e-5, rtol=1e-5)


def test_scripted_student_keeps_the_protocol() -> None:
    """The shipped fake answers by its script, streams the same text, and refuses a role it does not have."""
    student = ScriptedStudent(lambda _: "one two three", roles=("expert",))
    asked = StudentQuery(role="expert", messages=tuple(chat("q")), max_new_tokens=2)
    answer = student.answer([asked])[0]
    assert (answer.text, answer.finish_reason) == ("one two", "length")
    assert "".join(piece.text for piece in student.stream([asked])).strip() == answer.text
    engine = student.open(1)
    first, second = engine.add(engine.prepare(asked)), engine.add(engine.prepare(asked))
    assert [piece.index for _ in range(4) for piece in engine.step()] == [first, first, second, second]
    with pytest.raises(InputError, match="no role"):
        student.answer([asked.model_copy(update={"role": "nobody"})])


def test_missing_student_is_told(tmp_path: Path) -> None:
    """Reading a student that is not there says how to make one."""
    from potstill.workspace import StudentFiles

    with pytest.raises(InputError) as caught:
        read_student(StudentFiles(tmp_path / "students" / "none"))
    assert "potstill distill" in caught.value.hint
