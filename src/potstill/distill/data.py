"""The dataset as training rows, with errors by file and line and counts of what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from potstill.errors import InputError
from potstill.records import Sample, text_sha
from potstill.student.manifest import StudentRole
from potstill.student.template import encode_sample
from potstill.workspace import Workspace, read_text


@dataclass(frozen=True)
class Data:
    """The three splits, the roles in them, and the hash of each file."""

    train: list[Sample]
    validation: list[Sample]
    test: list[Sample]
    roles: tuple[StudentRole, ...]
    sha: dict[str, str]

    @property
    def held_out(self) -> list[Sample]:
        """What the verdict is made on: the test split, or the validation split where that is empty."""
        return self.test or self.validation


@dataclass(frozen=True)
class Rows:
    """Token ids and labels (-100: not learned) of one split, and what was cut or left out."""

    rows: list[dict[str, list[int]]]
    truncated: int
    dropped: int
    tokens: int
    supervised: int


def read_data(workspace: Workspace) -> Data:
    """Read the dataset; raises InputError naming file and line, or where there is nothing to train on."""
    splits = {name: read_samples(workspace.split(name)) for name in ("train", "validation", "test")}
    if not splits["train"]:
        message = f"{workspace.split('train')}: no samples to train on"
        raise InputError(message, hint="make some with `potstill generate`")
    if not splits["validation"] and not splits["test"]:
        message = f"{workspace.dataset}: no held-out samples, so there could be no verdict"
        raise InputError(message, hint="raise generate.splits.test and run `potstill generate` again; it pays nothing")
    systems: dict[str, str] = {}
    for sample in (row for rows in splits.values() for row in rows):
        systems.setdefault(sample.role, sample.messages[0].content if sample.messages[0].role == "system" else "")
    roles = tuple(StudentRole(name=name, system=system) for name, system in sorted(systems.items()))
    sha = {name: text_sha(read_text(workspace.split(name), "dataset")) for name in splits}
    return Data(splits["train"], splits["validation"], splits["test"], roles, sha)


def read_samples(path: Path) -> list[Sample]:
    """The samples of one file; a missing file raises InputError, as does a bad line."""
    if not path.is_file():
        message = f"no dataset: {path} is missing"
        raise InputError(message, hint="make one with `potstill generate`")
    samples = []
    for number, line in enumerate(_lines(read_text(path, "dataset")), start=1):
        try:
            sample = Sample.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            message = f"{path}:{number}: {'.'.join(str(part) for part in first['loc']) or 'line'}: {first['msg']}"
            raise InputError(message) from error
        if not sample.messages or sample.messages[-1].role != "assistant":
            message = f"{path}:{number}: messages: the last turn must be the assistant's"
            raise InputError(message)
        samples.append(sample)
    return samples


def encode(tokenizer: Any, samples: Sequence[Sample], max_length: int) -> Rows:
    """Token ids and labels; a sample that is too long is cut, one of which nothing is left to learn is dropped."""
    rows, truncated, dropped, tokens, supervised = [], 0, 0, 0, 0
    for sample in samples:
        encoded = encode_sample(tokenizer, sample.messages)
        truncated += len(encoded.ids) > max_length
        ids, learned = encoded.ids[:max_length], encoded.learned[:max_length]
        if not any(learned):
            dropped += 1
            continue
        labels = [token if keep else -100 for token, keep in zip(ids, learned, strict=True)]
        rows.append({"input_ids": ids, "labels": labels})
        tokens += len(ids)
        supervised += sum(learned)
    return Rows(rows, truncated, dropped, tokens, supervised)


def _lines(text: str) -> list[str]:
    """Lines of JSON Lines: only a newline ends one, because an answer may hold Unicode's other separators."""
    return text.removesuffix("\n").split("\n") if text else []
