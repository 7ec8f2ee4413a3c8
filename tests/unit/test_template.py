"""Masks, control tokens and dates under the real chat templates of Llama, Qwen and Gemma, as TRL ships them."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from potstill.config import StudentConfig
from potstill.errors import InputError
from potstill.records import Message
from potstill.student.base import load_tokenizer
from potstill.student.template import DATE, control_tokens, encode_prompt, encode_sample, neutralised, render, stop_ids

LLAMA = ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>", "<|finetune_right_pad_id|>"])
QWEN = (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"])
TEXT = ("<think>", "</think>", "\n\n\n")
"""Tokens that a real tokenizer adds as text: a thought's beginning and end, and, in Gemma, line ends."""
GEMMA = ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>", "<pad>"])
TEMPLATES = {
    "llama3": (LLAMA, "<|eot_id|>"),
    "llama3_1": (LLAMA, "<|eot_id|>"),
    "llama3_2": (LLAMA, "<|eot_id|>"),
    "qwen2_5": (QWEN, "<|im_end|>"),
    "qwen3": (QWEN, "<|im_end|>"),
    "gemma3": (GEMMA, "<end_of_turn>"),
}


def make_tokenizer(template: str) -> Any:
    """A byte-level tokenizer with a family's control tokens, known but not named, and its own template."""
    (bos, eos, others), _ = TEMPLATES[template]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Lines ends merge with what follows, as in real vocabularies: a seam that a naive mask gets wrong.
    texts = ["\n\n\n\n\nheat", "\n\n\nheat"] * 3
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=266, initial_alphabet=alphabet, show_progress=False))
    raw.add_special_tokens([AddedToken(token, special=True) for token in (bos, eos, *others) if token])
    raw.add_tokens([AddedToken(token) for token in TEXT if token.isspace() or template == "qwen3"])
    made = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos)
    made.chat_template = (files("trl") / "chat_templates" / f"{template}.jinja").read_text("utf-8")
    return made


def chat(question: str, *answer: str, system: str = "Be brief.") -> list[Message]:
    """A system turn, a question, and its answer where one is given."""
    turns = [Message(role="system", content=system), Message(role="user", content=question)]
    return turns + [Message(role="assistant", content=text) for text in answer]


@pytest.fixture(params=sorted(TEMPLATES))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer for each template."""
    made = make_tokenizer(request.param)
    made.family = request.param
    return made


def test_answer_and_stop_token_are_learned(tokenizer: Any) -> None:
    """Learned are the answer and the family's end of turn; nothing before it, such as an empty thought, nor a line end after."""
    encoded = encode_sample(tokenizer, chat("why?", "because of heat"))
    learned = tokenizer.decode([token for token, keep in zip(encoded.ids, encoded.learned, strict=True) if keep])
    stop = TEMPLATES[tokenizer.family][1]
    assert learned == f"because of heat{stop}"


@pytest.mark.parametrize("answer", ["heat", "\n\nheat", " heat ", "熱", "- a\n- b"])
def test_what_is_trained_begins_with_what_is_served(tokenizer: Any, answer: str) -> None:
    """The served prompt's ids are the beginning of the trained ids, whatever characters the answer begins with."""
    prompt = encode_prompt(tokenizer, chat("why?"))
    encoded = encode_sample(tokenizer, chat("why?", answer))
    assert encoded.ids[: len(prompt)] == prompt
    assert encoded.learned.index(True) == len(prompt)


def test_only_the_last_answer_is_learned(tokenizer: Any) -> None:
    """Earlier answers of a conversation are part of the prompt."""
    messages = [*chat("one?", "first answer"), *chat("two?", "second answer")[1:]]
    encoded = encode_sample(tokenizer, messages)
    learned = tokenizer.decode([token for token, keep in zip(encoded.ids, encoded.learned, strict=True) if keep])
    assert "second answer" in learned
    assert "first answer" not in learned


def test_control_tokens_in_text_stay_text(tokenizer: Any) -> None:
    """Neither a user nor the teacher forges a turn: text with every control token adds none of them."""
    tokens = tokenizer.added_tokens_decoder
    forged = "".join(token.content for token in tokens.values() if not token.content.isspace())
    plain = encode_sample(tokenizer, chat("hi", "yes", system="s")).ids
    dirty = encode_sample(tokenizer, chat(f"hi{forged}", f"yes{forged}", system=f"s{forged}")).ids
    for token in tokens:
        assert dirty.count(token) == plain.count(token)


def test_line_ends_are_no_control_tokens(tokenizer: Any) -> None:
    """Where line ends are tokens that were added, as in Gemma, a text with them stays as it is."""
    assert neutralised(tokenizer, "a\n\n\nb") == "a\n\n\nb"


def test_one_bos(tokenizer: Any) -> None:
    """The template writes the only BOS, where the family has one at all."""
    encoded = encode_sample(tokenizer, chat("why?", "heat"))
    if tokenizer.bos_token_id is not None:
        assert encoded.ids.count(tokenizer.bos_token_id) == 1


def test_the_date_is_pinned(tokenizer: Any) -> None:
    """A template that writes the day writes a fixed one; rendering knows no clock."""
    text = render(tokenizer, chat("why?"), answer_next=True)
    if "strftime_now" in tokenizer.chat_template:
        assert f"Today Date: {DATE}" in text


def test_a_template_that_asks_the_clock_itself_is_pinned() -> None:
    """A template without a `date_string` of its own gets the same fixed day from the clock that it calls."""
    tokenizer = make_tokenizer("qwen2_5")
    tokenizer.chat_template = "{{ strftime_now('%Y-%m-%d') }}" + tokenizer.chat_template
    assert render(tokenizer, chat("why?"), answer_next=True).startswith("2026-01-01")


def test_a_tokenizer_is_looked_through_once() -> None:
    """Gemma's 6,400 added tokens are not read again for each turn; another template or special token has them read anew."""
    tokenizer = make_tokenizer("gemma3")
    for find in (control_tokens, stop_ids):
        found = find(tokenizer)
        assert find(tokenizer) is found
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|done|>"]})
    assert "<|done|>" in control_tokens(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<end_of_turn>", "<|done|>")
    assert tokenizer.get_vocab()["<|done|>"] in stop_ids(tokenizer)


def test_an_unknown_end_of_turn_is_found() -> None:
    """The stop token is read off the template, so a family that nobody listed stops as well."""
    tokenizer = make_tokenizer("qwen2_5")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|done|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|done|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    assert tokenizer.get_vocab()["<|done|>"] in stop_ids(tokenizer)
    encoded = encode_sample(tokenizer, chat("why?", "heat"))
    assert tokenizer.decode([token for token, keep in zip(encoded.ids, encoded.learned, strict=True) if keep]) == (
        "heat<|done|>"
    )


def test_a_chat_that_the_template_refuses_is_an_input_error() -> None:
    """Gemma wants turns to alternate; the refusal is a clear error, not a stack of frames."""
    turns = [Message(role="user", content="a"), Message(role="user", content="b")]
    with pytest.raises(InputError, match="alternate"):
        render(make_tokenizer("gemma3"), turns, answer_next=True)


def test_a_template_that_fails_is_an_input_error() -> None:
    """What goes wrong within a template is told as its fault where it is first used, to find out how an answer ends."""
    tokenizer = make_tokenizer("qwen2_5")
    tokenizer.chat_template = "{{ bos_token + 'x' }}"
    with pytest.raises(InputError, match="bos_token"):
        stop_ids(tokenizer)


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    """Where the prompt looks different once an answer follows, no mask can be made, and that is said."""
    tokenizer = make_tokenizer("qwen2_5")
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    with pytest.raises(InputError, match="no mask"):
        encode_sample(tokenizer, chat("why?", "heat"))


@pytest.mark.parametrize("template", ["llama3_1", "qwen2_5", "gemma3"])
def test_pad_is_no_stop_token(tmp_path: Any, template: str) -> None:
    """A base that pads with its stop token, or with nothing, gets the token that its family keeps for padding."""
    made = make_tokenizer(template)
    made.pad_token = made.eos_token
    made.save_pretrained(tmp_path)
    loaded = load_tokenizer(StudentConfig(base=str(tmp_path)))
    assert loaded.pad_token_id not in stop_ids(loaded)
    assert loaded.pad_token in {"<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>"}
