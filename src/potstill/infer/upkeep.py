"""Looking after the cached answers: statistics, dropping by role, prompt, model or pattern, taking them elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from potstill.errors import InputError, UsageError
from potstill.files import LineFile, read_lines
from potstill.infer.bounds import LEVEL, lower_bound, upper_bound
from potstill.infer.key import Scope, exact_key
from potstill.infer.store import Entry, EntryStore, Fresh, Judged, packed, unpacked
from potstill.records import Record, from_json

FILTERS = ("role", "prompt", "model", "namespace", "route", "pattern")
"""What entries can be dropped by; `prompt` is the beginning of a system prompt's or a template's SHA-256."""


@dataclass(frozen=True)
class NamespaceStatistics:
    """What one namespace holds; `routes` counts where its answers came from."""

    namespace: str
    entries: int
    hits: int
    routes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """Verdicts of one source on would-be hits: `low` and `high` bound the rate of wrong ones, each with 95 % confidence."""

    source: str
    judged: int
    wrong: int
    low: float
    high: float


class Exported(Record):
    """One line of an export: an entry, what its scope stands for, and its vectors (base64 of little-endian float32)."""

    id: str
    scope: Scope
    namespace: str
    question: str
    answer: str
    route: str
    model: str | None
    created: float
    floor: float
    vectors: dict[str, str]


def statistics(store: EntryStore) -> tuple[NamespaceStatistics, ...]:
    """Entries, hits and routes by namespace."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for namespace, route, entries, hits in store.tally():
        found.setdefault(namespace, {})[route] = (entries, hits)
    return tuple(
        NamespaceStatistics(
            name,
            sum(entries for entries, _ in routes.values()),
            sum(hits for _, hits in routes.values()),
            {route: entries for route, (entries, _) in routes.items()},
        )
        for name, routes in found.items()
    )


def audits(judged: list[Judged]) -> tuple[Audit, ...]:
    """The verdicts by source."""
    found = []
    for source in sorted({item.source for item in judged}):
        fits = [item.fits for item in judged if item.source == source]
        wrong = fits.count(False)
        low, high = lower_bound(wrong, len(fits), LEVEL), upper_bound(wrong, len(fits), LEVEL)
        found.append(Audit(source, len(fits), wrong, low, high))
    return tuple(found)


def parse_filters(texts: list[str]) -> dict[str, str]:
    """`role=hardware-expert` and the like; raises UsageError for an unknown one, or for none."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in FILTERS or not value:
            message = f"--invalidate {text!r}: not of the form NAME=VALUE with one of {', '.join(FILTERS)}"
            raise UsageError(message, hint="e.g. role=cost-analyst, or 'pattern=*GPU*'; several must all apply")
        found[name] = value
    return found


def matching(store: EntryStore, filters: dict[str, str]) -> Iterator[Entry]:
    """The entries to which all filters apply. A pattern is a shell pattern over the question, case-insensitive."""
    scopes = {name: Scope.model_validate_json(about) for name, about in store.scopes().items()}
    for entry in store.entries():
        scope = scopes.get(entry.scope)
        if all(_applies(name, value, entry, scope) for name, value in filters.items()):
            yield entry


def _applies(name: str, value: str, entry: Entry, scope: Scope | None) -> bool:
    match name:
        case "namespace" | "route":
            return bool(getattr(entry, name) == value)
        case "pattern":
            return fnmatchcase(entry.question.lower(), value.lower())
        case "model":
            return value in (entry.model, scope.teacher_model if scope else None)
        case "role":
            return scope is not None and value in {role for role, _ in scope.roles}
        case _:
            shas = [scope.templates, *(sha for _, sha in scope.roles)] if scope else []
            return any(sha.startswith(value) for sha in shas)


def export(store: EntryStore, path: Path) -> int:
    """Write all entries as JSON Lines, whole or not at all; how many."""
    scopes = {name: Scope.model_validate_json(about) for name, about in store.scopes().items()}
    file = LineFile(path)
    try:
        for entry in store.entries():
            if (scope := scopes.get(entry.scope)) is not None:
                file.write(_exported(store, entry, scope).to_line())
        file.publish()
    finally:
        file.discard()
    return file.lines


def _exported(store: EntryStore, entry: Entry, scope: Scope) -> Exported:
    vectors = store.vectors_of(entry.number)
    return Exported(
        id=entry.id,
        scope=scope,
        namespace=entry.namespace,
        question=entry.question,
        answer=entry.answer,
        route=entry.route,
        model=entry.model,
        created=entry.created,
        floor=entry.floor,
        vectors={name: base64.b64encode(packed(vector)).decode() for name, vector in vectors.items()},
    )


def restore(store: EntryStore, path: Path, now: float) -> tuple[int, int]:
    """Take in an export; entries that are here already stay as they are. How many were added, and how many were here.

    Raises InputError for a line that is none, or whose id is not the key of its question: nothing is taken in then.
    """
    for _ in _lines(path):  # all are looked at before the first is taken in
        pass
    added = known = 0
    for entry in _lines(path):
        if store.exact(entry.id, entry.scope.id, now) is not None:
            known += 1
            continue
        fresh = Fresh(
            id=entry.id,
            scope=entry.scope.id,
            namespace=entry.namespace,
            question=entry.question,
            answer=entry.answer,
            route=entry.route,
            model=entry.model,
        )
        store.name_scope(entry.scope.id, entry.scope.model_dump_json())
        vectors = {name: unpacked(base64.b64decode(text)) for name, text in entry.vectors.items()}
        store.put(fresh, entry.created, vectors)
        if entry.floor:
            store.raise_floor(entry.id, entry.floor)
        added += 1
    return added, known


def _lines(path: Path) -> Iterator[Exported]:
    lines = enumerate(read_lines(path, "cache export"), start=1)
    return (_line(line, f"{path}:{number}") for number, line in lines if line.strip())


def _line(text: str, where: str) -> Exported:
    try:
        found = from_json(Exported, text, where, hint="a file that `infer --export` wrote")
        for vector in found.vectors.values():
            unpacked(base64.b64decode(vector, validate=True))
    except ValueError as error:
        message = f"{where}: vectors: {error}"
        raise InputError(message) from error
    hashed = found.question.startswith("sha256:")
    if found.namespace != found.scope.namespace or not (
        hashed or found.id == exact_key(found.scope.id, found.question)
    ):
        message = f"{where}: id: not the key of its question and scope"
        raise InputError(message)
    return found
