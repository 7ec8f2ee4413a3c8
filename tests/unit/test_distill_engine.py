"""The training engine on real tiny models: packing, attention, the one-pass loss, and memory that runs out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from potstill.config import DistillConfig
from potstill.distill.engine import Engine, checkpoint_layers, cross_entropy, use_packing
from potstill.distill.loss import Head, head_of, token_loss
from potstill.distill.oom import TokenLimit, is_out_of_memory
from potstill.distill.packing import UNLEARNED, Document, groups, pack, split
from potstill.distill.train import default_learning_rate, lora_model
from potstill.errors import InputError, MachineError
from potstill.student.onednn import pack as pack_weights
from potstill.student.onednn import rounded

VOCABULARY = 160
LENGTHS = (50, 3, 17, 130, 17, 64, 2, 90)
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen": Qwen2Config(**{key: value for key, value in SHAPE.items() if key != "head_dim"}),
    "mistral-window": MistralConfig(**SHAPE, sliding_window=20),
    "gemma-window": Gemma3TextConfig(**SHAPE, sliding_window=20, layer_types=["sliding_attention", "full_attention"]),
}


def new_base(name: str = "llama", *, packed: bool = True) -> Any:
    """A base with random weights, large enough for its logits to differ."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(3.0)
    base.requires_grad_(requires_grad=False)
    if packed:
        use_packing(base)
    return base


def documents(lengths: Sequence[int] = LENGTHS, weight: float = 1.0) -> list[Document]:
    """Random documents of which the first third is not learned."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in lengths:
        ids = tuple(torch.randint(3, VOCABULARY, (length,), generator=generator).tolist())
        labels = tuple(UNLEARNED if place < length // 3 else token for place, token in enumerate(ids))
        found.append(Document(ids, labels, weight))
    return found


def new_engine(
    tmp_path: Path, limit: int | None = None, *, laid_out: bool = False, dtype: Any = torch.float32, **more: Any
) -> Engine:
    """An engine over a base with adapters on all linear layers, B not zero, so that every gradient is seen."""
    base = new_base().to(dtype)
    model = lora_model(base, DistillConfig.model_validate({"lora": {"r": 4, "target_modules": "all-linear", **more}}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
    model.train()
    rounds = laid_out and pack_weights(base, backward=True)
    return Engine(model, cross_entropy(base), TokenLimit.load(tmp_path / "limit.json", limit, "cpu"), rounds=rounds)


def gradients(model: Any) -> dict[str, Any]:
    """The adapters' gradients by name."""
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.requires_grad}


def furthest(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The largest difference between gradients, against the largest gradient."""
    assert left.keys() == right.keys()
    scale = max(float(each.abs().max()) for each in left.values())
    return max(float((left[name] - right[name]).abs().max()) for name in left) / scale


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_logits_are_the_unpacked_ones(name: str) -> None:
    """Documents in one row do not see each other: logits equal those of each document alone to 1e-5."""
    base = new_base(name, packed=False)
    ordered = sorted(documents(), key=lambda each: -len(each.ids))
    with torch.no_grad():
        alone = torch.cat([base(input_ids=torch.tensor([each.ids])).logits[0] for each in ordered])
        use_packing(base)
        packed = pack(documents(), base.device)
        together = base(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, layout=packed.layout
        ).logits[0]
    assert float((together - alone).abs().max() / alone.abs().max()) < 1e-5
    assert float(alone.std()) > 0.1


def test_an_architecture_that_packing_does_not_reproduce_is_refused() -> None:
    """A base whose state runs on from one document into the next fails the check, with a hint, and is not trained."""
    from transformers import MambaConfig

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(InputError, match="mamba"):
        use_packing(AutoModelForCausalLM.from_config(config))


def test_a_cap_on_attention_scores_is_refused() -> None:
    """Gemma 2, whose attention scores have a cap, is not trained by an attention that has none."""
    with pytest.raises(InputError, match="caps its attention scores"):
        use_packing(AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE)))


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SHAPE, logits_scaling=3.0),
        CohereConfig(**{key: value for key, value in SHAPE.items() if key != "head_dim"}, logit_scale=0.3),
    ],
    ids=["granite", "cohere"],
)
def test_an_output_layer_with_a_scale_is_learned_through_it(config: Any) -> None:
    """Loss and gradient are those of the model's own logits, which Granite and Cohere scale."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    base.get_output_embeddings().weight.data.mul_(20)
    ids = torch.arange(3, 30)
    packed = pack([Document(tuple(ids.tolist()), tuple(ids.tolist()))], "cpu")
    hidden = base.get_decoder()(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    found = token_loss(hidden.index_select(0, packed.rows), head_of(base), packed)
    plain = torch.nn.functional.cross_entropy(base(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    assert found.item() == pytest.approx(plain.item(), rel=1e-6)
    weight = base.get_decoder().layers[0].mlp.up_proj.weight
    gradients = [torch.autograd.grad(loss, weight)[0] for loss in (found, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)
    use_packing(base)


@pytest.mark.parametrize("name", ["logits_scaling", "logit_scale"])
def test_an_output_layer_that_is_not_reproduced_is_refused(name: str) -> None:
    """A base whose logits are not those of its own head is not trained."""
    base = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **{name: 7.0}))  # Llama's own forward ignores it
    with pytest.raises(InputError, match="output layer"):
        use_packing(base)


def test_one_pass_loss_and_gradient_are_those_of_the_plain_loss() -> None:
    """Loss and gradient of the frozen head equal autograd's through all logits, weights and soft cap included."""
    torch.manual_seed(0)
    hidden = torch.randn(37, 16, requires_grad=True)
    packed = pack([Document(tuple(range(1, 39)), tuple(range(1, 39)), 0.25)], "cpu")
    for head in (
        Head(torch.randn(64, 16)),
        Head(torch.randn(64, 16), torch.randn(64)),
        Head(torch.randn(64, 16), None, 5.0),
        Head(torch.randn(64, 16), None, 5.0, 0.5),
    ):
        found = token_loss(hidden, head, packed)
        (gradient,) = torch.autograd.grad(found, hidden)
        plain = 0.25 * torch.nn.functional.cross_entropy(head.logits(hidden), packed.targets, reduction="sum")
        (expected,) = torch.autograd.grad(plain, hidden)
        assert found.item() == pytest.approx(plain.item(), rel=1e-6)
        assert torch.allclose(gradient, expected, atol=1e-6)


def test_a_step_is_the_plain_loss_of_transformers(tmp_path: Path) -> None:
    """Loss and gradients of a packed step equal those of one padded batch through the model's own loss."""
    engine = new_engine(tmp_path)
    loss = engine.step(documents())
    found = gradients(engine.model)
    engine.model.zero_grad()
    engine.model.set_attn_implementation("sdpa")
    rows = documents()
    width = max(LENGTHS)
    padded = {
        "input_ids": torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in rows]),
        "labels": torch.tensor([[*row.labels, *[UNLEARNED] * (width - len(row.ids))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows]),
    }
    plain = engine.model(**padded).loss
    plain.backward()
    assert float(loss) == pytest.approx(plain.item(), rel=1e-5)
    assert furthest(found, gradients(engine.model)) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_frozen_weights_laid_out_anew_change_no_gradient(tmp_path: Path, dtype: Any, tolerance: float) -> None:
    """Through weights packed for oneDNN, head included, and in a row filled up to a round length, gradients are equal."""
    plain, laid_out = (new_engine(tmp_path, laid_out=on, dtype=dtype) for on in (False, True))
    if not laid_out.rounds:
        assert dtype == torch.bfloat16
        pytest.skip("this processor does not compute in bfloat16")
    assert float(laid_out.step(documents())) == pytest.approx(float(plain.step(documents())), rel=tolerance / 10)
    assert furthest(gradients(laid_out.model), gradients(plain.model)) < tolerance
    assert laid_out.tokens_seen == sum(LENGTHS), "what fills a row up is not counted"


@given(st.integers(1, 100_000))
def test_rows_are_rounded_up_to_few_numbers(rows: int) -> None:
    """A round number is not less, at most a sixteenth or 15 more, and at most 16 of them lie between 2^n and 2^(n+1)."""
    found = rounded(rows)
    assert rows <= found <= max(rows + 15, rows * 17 // 16)
    assert rounded(found) == found
    assert rows <= 32 or found % max(16, 1 << (rows.bit_length() - 5)) == 0


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_out_of_memory_splits_the_step_and_keeps_its_gradient(tmp_path: Path, dropout: float) -> None:
    """A step whose micro-batches are refused beyond 150 tokens ends in the gradient of the undisturbed step."""
    whole = new_engine(tmp_path / "whole", dropout=0.0)
    expected_loss = whole.step(documents())
    tried: list[int] = []

    def admit(tokens: int) -> None:
        tried.append(tokens)
        if tokens > 150:
            message = "no more memory"
            raise torch.OutOfMemoryError(message)

    (tmp_path / "small").mkdir()
    engine = new_engine(tmp_path / "small", dropout=dropout)
    engine.dropout, engine.admit = dropout > 0, admit
    loss = engine.step(documents())
    assert max(tried) == sum(LENGTHS)
    assert engine.limit.tokens is not None
    assert engine.limit.tokens <= 150
    if not dropout:
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
        assert furthest(gradients(engine.model), gradients(whole.model)) < 1e-6
    tried.clear()
    engine.step(documents())
    assert max(tried) <= 150, "the limit is remembered within the run"
    assert TokenLimit.load(tmp_path / "small" / "limit.json", None, "cpu").tokens == engine.limit.tokens
    assert TokenLimit.load(tmp_path / "small" / "limit.json", None, "another card").tokens is None


def test_out_of_memory_in_the_backward_pass_leaves_no_half_gradient(tmp_path: Path) -> None:
    """Memory that runs out in the middle of a backward pass does not leave a part of a gradient behind."""
    expected = new_engine(tmp_path / "whole")
    expected.step(documents())
    (tmp_path / "small").mkdir()
    engine = new_engine(tmp_path / "small")
    spent: list[int] = []

    def refuse_once(gradient: Any) -> Any:
        spent.append(1)
        if len(spent) == 2:  # the second micro-batch: gradients of the first one are there
            message = "no more memory"
            raise torch.OutOfMemoryError(message)
        return gradient

    engine.limit.tokens = 200
    first = next(each for name, each in engine.model.named_parameters() if "layers.0" in name and "lora_B" in name)
    first.register_hook(refuse_once)
    engine.step(documents())
    assert len(spent) > 2
    assert furthest(gradients(engine.model), gradients(expected.model)) < 1e-6


def test_a_base_that_overflows_in_16_bits_is_refused() -> None:
    """Gemma 3 on a T4: what has no numbers in float16 is refused for that reason, before anything is trained."""
    base = new_base(packed=False).half()
    with torch.no_grad():
        base.get_decoder().layers[0].mlp.up_proj.weight.mul_(6e4)
        base.get_decoder().layers[0].mlp.down_proj.weight.fill_(6e4)
    with pytest.raises(InputError, match="llama overflows in float16"):
        use_packing(base)


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_spent_memory_is_told_from_other_errors(error: RuntimeError, spent: bool) -> None:
    """Memory also runs out past torch's own allocator, in cuBLAS and in the driver; a broken kernel is no shortage."""
    assert is_out_of_memory(error) is spent


def test_checkpointing_comes_before_splitting(tmp_path: Path) -> None:
    """With `auto`, the first shortage switches activation checkpointing on, and the gradient stays the same."""
    expected = new_engine(tmp_path / "whole")
    expected.step(documents())
    (tmp_path / "small").mkdir()
    engine = new_engine(tmp_path / "small")
    refusals = [1]

    def admit(tokens: int) -> None:
        if refusals:
            message = f"no room for {tokens} tokens, {refusals.pop()}"
            raise torch.OutOfMemoryError(message)

    engine.may_checkpoint, engine.admit = True, admit
    engine.step(documents())
    assert engine.model.get_base_model().is_activation_checkpointing
    assert engine.limit.tokens is None
    assert furthest(gradients(engine.model), gradients(expected.model)) < 1e-6


def test_one_sample_that_does_not_fit_is_a_machine_error(tmp_path: Path) -> None:
    """Where a single sample is too much there is nothing to split: exit 7 with what to change, not an endless loop."""
    engine = new_engine(tmp_path)

    def admit(tokens: int) -> None:
        raise torch.OutOfMemoryError(str(tokens))

    engine.admit = admit
    with pytest.raises(MachineError, match="130 tokens") as caught:
        engine.step(documents())
    assert "max_length" in str(caught.value.hint)


def test_other_errors_are_not_taken_for_memory(tmp_path: Path) -> None:
    """A RuntimeError that is not about memory comes through."""
    engine = new_engine(tmp_path)

    def admit(tokens: int) -> None:
        message = f"shapes do not match at {tokens}"
        raise RuntimeError(message)

    engine.admit = admit
    with pytest.raises(RuntimeError, match="shapes"):
        engine.step(documents())


def test_the_probe_leaves_no_trace(tmp_path: Path) -> None:
    """The probe before training finds the limit and leaves no gradient, no count and no change in random numbers."""
    engine = new_engine(tmp_path, dropout=0.5)
    engine.dropout = True

    def admit(tokens: int) -> None:
        if tokens > 140:
            raise torch.OutOfMemoryError

    engine.admit = admit
    state = torch.get_rng_state()
    engine.probe(documents(), size=4)
    assert torch.equal(state, torch.get_rng_state())
    assert engine.tokens_seen == 0
    assert all(each.grad is None for each in engine.model.parameters())
    assert engine.limit.tokens is not None


def test_evaluation_is_the_loss_a_token(tmp_path: Path) -> None:
    """The validation loss weighs tokens, not batches, and is the same in batches of any size."""
    engine = new_engine(tmp_path)
    rows = documents()
    by_one, mass = engine.evaluate(iter([[row] for row in rows]))
    by_all, all_mass = engine.evaluate(iter([rows]))
    assert mass == all_mass == sum(row.learned for row in rows)
    assert by_one == pytest.approx(by_all, rel=1e-5)


def test_checkpointing_keeps_the_gradient(tmp_path: Path) -> None:
    """Activation checkpointing on demand gives the gradients of the plain step."""
    plain, stored = new_engine(tmp_path), new_engine(tmp_path)
    checkpoint_layers(stored.model)
    plain.step(documents())
    stored.step(documents())
    assert furthest(gradients(plain.model), gradients(stored.model)) < 1e-6


@given(st.lists(st.integers(1, 300), min_size=1, max_size=30), st.integers(1, 600))
def test_split_keeps_every_document_and_the_limit(lengths: list[int], limit: int) -> None:
    """No document is lost or doubled, and only a document that is too long by itself passes the limit."""
    rows = [Document(tuple(range(length)), (UNLEARNED,) * length) for length in lengths]
    parts = split(rows, limit)
    assert sorted(len(row.ids) for part in parts for row in part) == sorted(lengths)
    assert all(sum(len(row.ids) for row in part) <= limit or len(part) == 1 for part in parts)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_groups_cut_a_falling_list_into_its_parts(lengths: list[int]) -> None:
    """Groups are neighbours, in order, none empty."""
    falling = sorted(lengths, reverse=True)
    found = groups(falling)
    assert [length for group in found for length in group] == falling
    assert all(found)


def test_learning_rate_follows_size_and_family() -> None:
    """The rates that the source's authors give: 2.9e-4 for Llama 8B, 4.8e-4 for Qwen 7B; never above 0.01."""
    assert default_learning_rate(4096) == pytest.approx(2.86e-4, rel=0.01)
    assert default_learning_rate(3584, "qwen2") == pytest.approx(4.78e-4, rel=0.01)
    assert default_learning_rate(1) == 0.01
    assert math.isfinite(default_learning_rate(100_000))


def test_a_document_weighs_by_its_learned_tokens() -> None:
    """Half a weight on two learned tokens divides the loss by one; the first token, which nothing predicts, never counts."""
    assert Document((5, 6, 7), (-100, 6, 7), weight=0.5).mass == 1.0
    assert Document((5, 6, 7), (5, 6, 7), weight=0.5).mass == 1.0
