"""`students/<name>/manifest.json`: what a student was made from, and how it must be rendered."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from potstill.errors import InputError
from potstill.records import Record, from_json
from potstill.workspace import StudentFiles, read_text


class StudentRole(Record):
    """A role as the student was trained on it."""

    name: str
    system: str


class Energy(Record):
    """What training took of electricity: `measured` by the counters that `how` names, or an estimate that `how` explains."""

    kwh: float
    measured: bool
    how: str


class StudentManifest(Record):
    """Everything that changes the student's answers, and where it comes from.

    `train_seconds` counts all runs that it took; `energy` is None where neither a counter nor a card's power is known.
    """

    schema_version: Literal[1] = 1
    name: str
    base: str
    revision: str | None
    base_sha: str
    template_sha: str
    roles: tuple[StudentRole, ...]
    adapters: Literal["shared", "per-role"]
    plan_id: str
    dataset_sha: Mapping[str, str]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    samples: int
    supervised_tokens: int
    train_seconds: float
    created_at: datetime
    energy: Energy | None = None


def read_manifest(files: StudentFiles) -> StudentManifest:
    """Read a student's manifest; raises InputError where there is no such student."""
    if not files.manifest.is_file():
        message = f"no student in {files.root}"
        raise InputError(message, hint="make one with `potstill distill`")
    return from_json(StudentManifest, read_text(files.manifest, "student manifest"), files.manifest)
