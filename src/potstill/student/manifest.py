"""`students/<name>/manifest.json`: what a student was made from, and how it must be rendered."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from potstill.errors import InputError
from potstill.files import read_text
from potstill.records import Record, content_id, from_json
from potstill.student.stamp import remembered_shas
from potstill.workspace import StudentFiles

Adapters = Literal["shared", "per-role"]
"""One adapter for all roles, or one each."""
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What PEFT saves of an adapter, both of which change its answers."""


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
    adapters: Adapters
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


def adapter_folders(files: StudentFiles, adapters: Adapters, roles: Iterable[StudentRole]) -> dict[str, Path]:
    """The adapter of each role, by the role's name; the only place that knows which roles share one."""
    return {role.name: files.adapter if adapters == "shared" else files.role_adapter(role.name) for role in roles}


def source_of(files: StudentFiles, manifest: StudentManifest) -> str:
    """A hash of what a student's folder adds to its base: adapters, roles, template.

    Raises InputError where an adapter is missing.
    """
    folders = list(
        dict.fromkeys(adapter_folders(files, manifest.adapters, manifest.roles).values())
    )  # one, where the roles share it
    parts = [folder / name for folder in folders for name in ADAPTER_FILES]
    try:
        shas = iter(remembered_shas(parts, files.stamp, time.time_ns()))
    except OSError as error:
        message = f"no adapter in {Path(error.filename).parent}: {error.strerror}"
        raise InputError(message, hint="run `potstill distill` again") from error
    weights = [[next(shas) for _ in ADAPTER_FILES] for _ in folders]
    roles = [role.model_dump() for role in manifest.roles]
    return content_id([manifest.base_sha, manifest.template_sha, roles, weights])


def fingerprint_of(base_sha: str, roles: Mapping[str, tuple[str, str]]) -> str:
    """A hash of everything that changes a student's answers: its base, and each role's system prompt and source.

    It is the same for a student that is loaded and one that lies on disk, so that a server and `infer` share a cache.
    """
    return content_id([base_sha, [[name, *role] for name, role in roles.items()]])


def fingerprint_on_disk(files: StudentFiles) -> str:
    """The fingerprint of a student that nobody has loaded; raises InputError where it is not whole."""
    manifest = read_manifest(files)
    source = source_of(files, manifest)
    return fingerprint_of(manifest.base_sha, {role.name: (role.system, source) for role in manifest.roles})
