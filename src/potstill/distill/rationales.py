"""The teacher's rationales as a second task beside its answers.

Distilling step-by-step (Hsieh et al. 2023, arXiv 2305.02301): one student learns two tasks told apart by their input, the
answer to the question as it will be served, and the rationale behind an instruction of its own. The loss is
`answers + weight * rationales`, each a mean over its own tokens. Nobody asks for the rationale when the student is served,
so it costs no token there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from potstill.config import Config
from potstill.distill.data import Chat, Rows, encode, supervised
from potstill.errors import InputError
from potstill.prompts import fill, load_template
from potstill.records import Message, Sample


def training_rows(tokenizer: Any, samples: Sequence[Sample], config: Config) -> Rows:
    """The rows of some training samples, with their rationales where `distill.rationale.weight` asks for them."""
    weight, length = config.distill.rationale.weight, config.distill.max_length
    if weight is None:
        return encode(tokenizer, samples, length)
    rows = encode(
        tokenizer, samples, length, _asking(load_template(config.distill.rationale.template, config.language))
    )
    learned = sum(map(supervised, rows.rationales.values()))
    return replace(rows, rationale_weight=weight * (rows.supervised - learned) / learned) if learned else rows


def check_rationales(rows: Rows, config: Config) -> None:
    """Raise InputError where rationales are to be learned, and the whole training split has none; one role may."""
    if config.distill.rationale.weight is not None and not rows.rationales:
        message = "distill.rationale.weight is set, but no training sample has a rationale"
        hint = "get them with `potstill generate --set generate.rationales.enabled=true`; it pays for nothing else"
        raise InputError(message, hint=hint)


def _asking(template: str) -> Callable[[Sample], Chat | None]:
    """How a sample becomes the chat in which the rationale is the answer."""

    def chat(sample: Sample) -> Chat | None:
        if not sample.rationale or not sample.rationale.strip():
            return None
        *before, question, _ = sample.messages
        asked = fill(template, {"question": question.content}, origin="template explain").strip()
        return (
            *before,
            Message(role="user", content=asked),
            Message(role="assistant", content=sample.rationale),
        )

    return chat
