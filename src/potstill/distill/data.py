"""The dataset as training rows, with errors by file and line and counts of what was lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.distill.heldout import Leak, duplicates, fair
from potstill.distill.packing import UNLEARNED
from potstill.errors import InputError
from potstill.files import read_text
from potstill.records import Message, Sample, from_json, text_sha
from potstill.student.manifest import StudentRole
from potstill.student.template import Encoded, encode_sample
from potstill.workspace import Workspace


@dataclass(frozen=True)
class Data:
    """The three splits, what the verdict is made on, the roles, and the hash of each file.

    `held_out` is the test split, or the validation split where that is empty, without `leaks`: questions that stand
    nearly word for word among the training questions. `duplicates` counts training samples that repeat another one;
    `other_systems` names roles with more than one system prompt, of which the first will be served.
    """

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    held_out: list[Sample]
    leaks: list[Leak]
    duplicates: int
    roles: tuple[StudentRole, ...]
    other_systems: tuple[str, ...]
    sha: dict[str, str]


Row = dict[str, list[int]]
Chat = Sequence[Message]


@dataclass(frozen=True)
class Rows:
    """Token ids and labels (-100: not learned) of one split, and what was cut or left out.

    `rationales`: place of a row -> its rationale's row, a second task that is learned in the same step;
    `rationale_weight` is what one token of it counts for beside one of an answer.
    """

    rows: list[Row]
    truncated: int
    dropped: int
    tokens: int
    supervised: int
    rationales: Mapping[int, Row] = field(default_factory=dict)
    rationale_weight: float = 0.0


def read_data(workspace: Workspace, near_duplicate: float) -> Data:
    """Read the dataset; raises InputError naming file and line, or where there is nothing to train on or to judge by."""
    splits = {name: read_samples(workspace.split(name)) for name in ("train", "validation", "test")}
    if not splits["train"]:
        message = f"{workspace.split('train')}: no samples to train on"
        raise InputError(message, hint="make some with `potstill generate`")
    if not splits["validation"] and not splits["test"]:
        message = f"{workspace.dataset}: no held-out samples, so there could be no verdict"
        raise InputError(message, hint="raise generate.splits.test and run `potstill generate` again; it pays nothing")
    held_out = fair(splits["train"], splits["test"] or splits["validation"], near_duplicate)
    if not held_out.samples:
        leak = held_out.leaks[0]
        message = (
            f"{workspace.dataset}: every held-out question stands among the training questions, e.g. {leak.near!r}"
        )
        raise InputError(message, hint="bring more different prompts, or raise distill.near_duplicate")
    systems = _systems([row for rows in splits.values() for row in rows])
    return Data(
        **splits,
        held_out=held_out.samples,
        leaks=held_out.leaks,
        duplicates=duplicates(splits["train"]),
        roles=tuple(StudentRole(name=name, system=texts[0]) for name, texts in sorted(systems.items())),
        other_systems=tuple(name for name, texts in sorted(systems.items()) if len(texts) > 1),
        sha={name: text_sha(read_text(workspace.split(name), "dataset")) for name in splits},
    )


def read_samples(path: Path) -> list[Sample]:
    """The samples of one file, empty lines aside; a missing file raises InputError, as does a bad line."""
    if not path.is_file():
        message = f"no dataset: {path} is missing"
        raise InputError(message, hint="make one with `potstill generate`")
    samples = []
    for number, line in enumerate(_lines(read_text(path, "dataset")), start=1):
        if not line.strip():
            continue
        sample = from_json(Sample, line, f"{path}:{number}")
        if (problem := _problem(sample)) is not None:
            message = f"{path}:{number}: messages: {problem}"
            raise InputError(message)
        samples.append(sample)
    return samples


def _problem(sample: Sample) -> str | None:
    """What makes a chat unfit to learn from; None where nothing does."""
    turns = [turn.role for turn in sample.messages]
    if not turns or turns[-1] != "assistant":
        return "the last turn must be the assistant's"
    rest = turns[1:] if turns[0] == "system" else turns
    if len(rest) % 2 or any(role != ("user", "assistant")[place % 2] for place, role in enumerate(rest)):
        return f"turns must go user, assistant, user, ..., after at most one system turn, but are {', '.join(turns)}"
    empty = next((place for place, turn in enumerate(sample.messages) if not turn.content.strip()), None)
    if empty is not None and turns[empty] != "system":
        return f"turn {empty} ({turns[empty]}) is empty"
    return None


def _systems(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Role -> its different system prompts, in their order."""
    systems: dict[str, list[str]] = {}
    for sample in samples:
        text = sample.messages[0].content if sample.messages[0].role == "system" else ""
        known = systems.setdefault(sample.role, [])
        if text not in known:
            known.append(text)
    return systems


def _nothing(_: Sample) -> Chat | None:
    """No second task."""
    return None


def encode(
    tokenizer: Any, samples: Sequence[Sample], max_length: int, beside: Callable[[Sample], Chat | None] = _nothing
) -> Rows:
    """Token ids and labels; a sample that is too long is cut, one of which nothing is left to learn is dropped.

    `beside` gives the chat of a sample's second task, if it has one.
    """
    rows: list[Row] = []
    seconds: dict[int, Row] = {}
    lengths: list[int] = []
    for sample in samples:
        row, length = _row(encode_sample(tokenizer, sample.messages), max_length)
        lengths.append(length)
        if row is None:
            continue
        rows.append(row)
        chat = beside(sample)
        second, length = _row(encode_sample(tokenizer, chat), max_length) if chat else (None, 0)
        lengths.append(length)
        if second is not None:
            seconds[len(rows) - 1] = second
    tokens = sum(len(row["input_ids"]) for row in (*rows, *seconds.values()))
    truncated = sum(length > max_length for length in lengths)
    learned = sum(map(supervised, (*rows, *seconds.values())))
    return Rows(rows, truncated, len(samples) - len(rows), tokens, learned, seconds)


def check_some(rows: Rows, whose: str, max_length: int) -> None:
    """Raise InputError where all of `whose` samples were dropped."""
    if not rows.rows:
        message = f"{whose} is dropped: its prompt alone fills distill.max_length ({max_length} tokens)"
        raise InputError(message, hint="raise distill.max_length")


def supervised(row: Row) -> int:
    """Tokens of a row that are learned."""
    return sum(label != UNLEARNED for label in row["labels"])


def _row(encoded: Encoded, max_length: int) -> tuple[Row | None, int]:
    """The row of a chat, None where nothing of it is learned, and its uncut length."""
    ids, learned = encoded.ids[:max_length], encoded.learned[:max_length]
    labels = [token if keep else UNLEARNED for token, keep in zip(ids, learned, strict=True)]
    return ({"input_ids": ids, "labels": labels} if any(learned) else None), len(encoded.ids)


def _lines(text: str) -> list[str]:
    """Lines of JSON Lines: only a newline ends one, because an answer may hold Unicode's other separators."""
    return text.removesuffix("\n").split("\n") if text else []
