"""Labelled pairs of questions: does one answer serve both? Read from files, dealt to splits without leaks."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.errors import InputError
from potstill.files import parse_json

Split = Literal["fit", "calibrate", "heldout"]
SPLITS: tuple[Split, ...] = ("fit",) * 4 + ("calibrate",) * 4 + ("heldout",) * 2
"""Ten parts: four to fit a verifier on, four to set the threshold on, two that took part in neither."""
LABELS = {"1": True, "0": False, "true": True, "false": False}
COLUMNS = 3
LARGE = 0.1
"""Share of all pairs from which such as hang together are taken apart."""
FEW = 5


@dataclass(frozen=True)
class Pair:
    """Two questions; `same`: one answer serves both."""

    question: str
    cached: str
    same: bool


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """Pairs from a file: `.tsv` (question, question, 1 or 0) or `.jsonl` ({"a", "b", "same"}), each also `.gz`.

    Raises InputError that names file, line and field.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    readers = {".tsv": _from_tsv, ".jsonl": _from_jsonl}
    if not suffixes or suffixes[-1] not in readers:
        message = f"{path}: pairs come as .tsv or .jsonl, plain or .gz"
        raise InputError(message, hint='a line of .jsonl: {"a": "...", "b": "...", "same": true}')
    found = tuple(readers[suffixes[-1]](path))
    if not found:
        message = f"{path}: no pairs in it"
        raise InputError(message)
    return found


def split_pairs(pairs: Sequence[Pair], deal: str = "") -> dict[Split, list[Pair]]:
    """Deal pairs to splits by content, so that no question stands in two of them. Another `deal` deals otherwise.

    A pair whose questions were dealt to two splits is left out.
    """
    found: dict[Split, list[Pair]] = {"fit": [], "calibrate": [], "heldout": []}
    for pair, (one, other) in zip(pairs, dealt(pairs, len(SPLITS), deal), strict=True):
        if SPLITS[one] == SPLITS[other]:
            found[SPLITS[one]].append(pair)
    return found


def dealt(pairs: Sequence[Pair], parts: int, deal: str = "") -> list[tuple[int, int]]:
    """The part, of so many, to which each of a pair's two questions is dealt, by content.

    Pairs that share a question, directly or over others, stay together. Where so many hang together that they would fill
    a part by themselves, as pairs of one small cache do, their questions are dealt one by one.
    """
    parents: dict[str, str] = {}

    def root(question: str) -> str:
        while parents.setdefault(question, question) != question:
            parents[question] = parents[parents[question]]
            question = parents[question]
        return question

    for pair in pairs:
        one, other = sorted((root(pair.question), root(pair.cached)))
        parents[other] = one
    sizes = Counter(root(pair.question) for pair in pairs)

    def part(question: str) -> int:
        together = root(question)
        text = together if sizes[together] <= max(FEW, LARGE * len(pairs)) else question
        digest = hashlib.sha256((deal + text).encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:4]) % parts

    return [(part(pair.question), part(pair.cached)) for pair in pairs]


def _from_tsv(path: Path) -> Iterator[Pair]:
    rows = csv.reader(_lines(path), delimiter="\t", quoting=csv.QUOTE_NONE)
    for number, row in enumerate(rows, start=1):
        if not row:
            continue
        if len(row) != COLUMNS:
            message = f"{path}:{number}: {len(row)} columns, not question, question, label"
            raise InputError(message)
        yield _pair(row[0], row[1], LABELS.get(row[2].strip().lower()), f"{path}:{number}")


def _from_jsonl(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            message = f"{path}:{number}: not JSON: {error.msg} (column {error.colno})"
            raise InputError(message) from error
        found = row if isinstance(row, dict) else {}
        yield _pair(found.get("a"), found.get("b"), found.get("same"), f"{path}:{number}")


def _pair(question: Any, cached: Any, same: Any, where: str) -> Pair:
    for name, value in (("a", question), ("b", cached)):
        if not isinstance(value, str) or not value.strip():
            message = f"{where}: {name}: a text is needed"
            raise InputError(message)
    if same not in (True, False):
        message = f"{where}: same: 1 (one answer serves both) or 0 is needed"
        raise InputError(message)
    return Pair(question.strip(), cached.strip(), bool(same))


def _lines(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        message = f"cannot read pairs {path}: {getattr(error, 'strerror', None) or error}"
        raise InputError(message) from error
