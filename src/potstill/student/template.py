"""From a chat to token ids, the same way in training and in serving."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, wraps
from typing import Any, TypeVar

from potstill.errors import InputError
from potstill.records import Message

DATE = "01 Jan 2026"
"""Some templates write the current day into every prompt; a fixed one keeps training and serving equal."""
CLOCK = re.compile(r"""strftime_now\(\s*["']([^"']*)["']\s*\)""")
"""How a template asks for the day."""
VALUES = {"date_string": DATE, "enable_thinking": False}
"""What every template is given. A student answers at once, as its teacher's text does: where a family can also think aloud,
the empty thought is part of the prompt, and neither learned nor served."""
ZERO_WIDTH = "\u200b"
"""Put inside a control token that stands in somebody's text, so that it stays text."""
REMEMBERED = 4
"""Tokenizers of which is remembered what was found: Gemma's 6,400 added tokens take milliseconds to look through."""
Found = TypeVar("Found")


def _remembered(find: Callable[[Any], Found]) -> Callable[[Any], Found]:
    """Look at a tokenizer once, and anew where its template or what it names as special has changed."""
    known = lru_cache(REMEMBERED)(lambda tokenizer, *_: find(tokenizer))

    @wraps(find)
    def found(tokenizer: Any) -> Found:
        return known(tokenizer, tokenizer.chat_template, tuple(tokenizer.all_special_tokens))

    return found


@dataclass(frozen=True)
class Encoded:
    """Token ids of a whole chat up to its last stop token, and for each token whether the student learns it."""

    ids: list[int]
    learned: list[bool]


def render(tokenizer: Any, messages: Sequence[Message], *, answer_next: bool) -> str:
    """The chat as text, by the base's own template; `answer_next` ends it where the answer begins.

    Raises InputError where the template refuses the chat, as some do when turns do not alternate.
    """
    from jinja2 import TemplateError

    turns = [{"role": turn.role, "content": neutralised(tokenizer, turn.content)} for turn in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=_with_pinned_clock(tokenizer.chat_template),
            tokenize=False,
            add_generation_prompt=answer_next,
            **VALUES,
        )
    except TemplateError as error:
        message = f"the base's chat template refuses a chat of {', '.join(turn.role for turn in messages)}: {error}"
        raise InputError(message) from error
    return str(text)


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Ids of a chat up to where the answer begins. The template writes the only BOS."""
    return _ids(tokenizer, render(tokenizer, messages, answer_next=True))


def encode_sample(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    """Ids of a chat that ends in an answer; the answer and its stop token are learned.

    The mask comes from two renderings, with and without the answer, and works for every template in which the one is
    the beginning of the other; raises InputError for a template in which it is not. The prompt's ids are those that
    are served: where a token would reach across the seam, prompt and answer are made into tokens apart.
    """
    stops = stop_ids(tokenizer)
    before, after = render(tokenizer, messages[:-1], answer_next=True), render(tokenizer, messages, answer_next=False)
    if not after.startswith(before):
        message = "the base's chat template changes the prompt when an answer follows, so no mask can be made"
        raise InputError(message, hint="choose another student.base")
    prompt, whole = _ids(tokenizer, before), _ids(tokenizer, after)
    if whole[: len(prompt)] != prompt:
        whole = prompt + _ids(tokenizer, after[len(before) :])
    last = max((index for index, token in enumerate(whole) if token in stops and index >= len(prompt)), default=-1)
    if last < 0:
        message = "the base's chat template ends an answer without a stop token"
        raise InputError(message, hint="choose an instruction-tuned student.base")
    return Encoded(whole[: last + 1], [index >= len(prompt) for index in range(last + 1)])


@_remembered
def stop_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's EOS, the usual ends of turn, and what this template ends one with."""
    known = tokenizer.get_vocab()
    names = (tokenizer.eos_token, "<|eot_id|>", "<|im_end|>", "<end_of_turn>")
    return frozenset([*(known[name] for name in names if name in known), *_ends_of_turn(tokenizer)])


@_remembered
def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts that the tokenizer reads as control tokens, those that it names and those that it only knows.

    Tokens that only the template takes for control, such as Qwen 3's `<think>`, count too; those for line ends do not.
    """
    template = tokenizer.chat_template or ""
    added = (
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    )
    return frozenset([*tokenizer.all_special_tokens, *added])


def neutralised(tokenizer: Any, text: str) -> str:
    """A text in which no control token of the tokenizer stands, so that nobody can forge a turn."""
    for token in control_tokens(tokenizer):
        if token in text:
            text = text.replace(token, token[0] + ZERO_WIDTH + token[1:])
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _ends_of_turn(tokenizer: Any) -> list[int]:
    """The control token right after an answer, found by rendering one."""
    probe = "probe"
    text = render(
        tokenizer, [Message(role="user", content="x"), Message(role="assistant", content=probe)], answer_next=False
    )
    rest = _ids(tokenizer, text.rpartition(probe)[2].strip())
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [rest[0]] if rest and rest[0] in special else []


def _with_pinned_clock(template: str) -> str:
    """The template as it is, or, where it asks the clock, with a clock in front of it that stands still."""
    forms = sorted(set(CLOCK.findall(template)))
    if not forms:
        return template
    day = datetime.strptime(DATE, "%d %b %Y").replace(tzinfo=UTC)
    days = {form: day.strftime(form) for form in forms}
    return f"{{%- macro strftime_now(form) -%}}{{{{ {days!r}[form] }}}}{{%- endmacro -%}}{template}"
