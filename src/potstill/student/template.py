"""From a chat to token ids, the same way in training and in serving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import InputError
from potstill.records import Message

DATE = "01 Jan 2026"
"""Some templates write the current day into every prompt; a fixed one keeps training and serving equal."""
ZERO_WIDTH = "\u200b"
"""Put inside a control token that stands in somebody's text, so that it stays text."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a whole chat, and for each token whether the student learns it."""

    ids: list[int]
    learned: list[bool]


def render(tokenizer: Any, messages: Sequence[Message], *, answer_next: bool) -> str:
    """The chat as text; `answer_next` ends it where the answer begins."""
    turns = [{"role": turn.role, "content": neutralised(tokenizer, turn.content)} for turn in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next, date_string=DATE)
    return str(text)


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a chat up to where the answer begins. The template writes the only BOS."""
    return list(tokenizer(render(tokenizer, messages, answer_next=True), add_special_tokens=False)["input_ids"])


def encode_sample(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    """Ids of a chat that ends in an answer; the answer and its stop token are learned.

    The mask comes from two renderings, with and without the answer, and works for every template in which the one is
    the beginning of the other; raises InputError for a template in which it is not.
    """
    prompt = encode_prompt(tokenizer, messages[:-1])
    whole = list(tokenizer(render(tokenizer, messages, answer_next=False), add_special_tokens=False)["input_ids"])
    if whole[: len(prompt)] != prompt:
        message = "the base's chat template changes the prompt when an answer follows, so no mask can be made"
        raise InputError(message, hint="choose another student.base")
    stops = stop_ids(tokenizer)
    last = max((index for index, token in enumerate(whole) if token in stops and index >= len(prompt)), default=-1)
    if last < 0:
        message = "the base's chat template ends an answer without a stop token"
        raise InputError(message, hint="choose an instruction-tuned student.base")
    return Encoded(whole, [len(prompt) <= index <= last for index in range(len(whole))])


def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's EOS, and the ends of turn of the usual templates that it knows."""
    known = tokenizer.get_vocab()
    names = (tokenizer.eos_token, "<|eot_id|>", "<|im_end|>", "<end_of_turn>")
    return frozenset(known[name] for name in names if name in known)


def neutralised(tokenizer: Any, text: str) -> str:
    """A text in which no control token of the tokenizer stands, so that nobody can forge a turn."""
    for token in tokenizer.all_special_tokens:
        if token in text:
            text = text.replace(token, token[0] + ZERO_WIDTH + token[1:])
    return text
