"""The student in this process: one base, its adapters, several roles in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.config import StudentConfig
from potstill.errors import InputError
from potstill.records import Message, content_id
from potstill.student.answers import Piece, StudentAnswer, StudentQuery
from potstill.student.base import base_sha, load_base, load_tokenizer
from potstill.student.decoding import Row, decode
from potstill.student.manifest import StudentRole, read_manifest
from potstill.student.template import encode_prompt, stop_ids
from potstill.workspace import StudentFiles


@dataclass(frozen=True)
class Persona:
    """Who a model answers as: its name, its roles, and whether each role has an adapter of its own."""

    name: str
    roles: tuple[StudentRole, ...]
    adapter_per_role: bool = False


class LocalStudent:
    """Implements `answers.Student` over transformers and PEFT. Not thread-safe: one caller at a time."""

    def __init__(self, persona: Persona, model: Any, tokenizer: Any, fingerprint: str) -> None:
        self._persona = persona
        self._model = model
        self._tokenizer = tokenizer
        self._systems = {role.name: role.system for role in persona.roles}
        self._stops = stop_ids(tokenizer)
        self.fingerprint = fingerprint

    @property
    def name(self) -> str:
        """The student's name."""
        return self._persona.name

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles it was trained on."""
        return tuple(self._systems)

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries in one batch, in their order."""
        found = {piece.index: piece.answer for piece in self.stream(queries) if piece.answer is not None}
        return [found[index] for index in range(len(queries))]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer piece by piece; raises InputError for an unknown role."""
        rows = [self._row(query) for query in queries]
        adapters = [row.query.role for row in rows] if self._persona.adapter_per_role else None
        return decode(self._model, self._tokenizer, rows, self._stops, adapters)

    def _row(self, query: StudentQuery) -> Row:
        if query.role not in self._systems:
            message = f"the student {self.name!r} has no role {query.role!r}"
            raise InputError(message, hint=f"it has {', '.join(self.roles)}")
        messages = query.messages
        if not any(message.role == "system" for message in messages):
            messages = (Message(role="system", content=self._systems[query.role]), *messages)
        return Row(query, encode_prompt(self._tokenizer, messages))


def load_student(files: StudentFiles, config: StudentConfig) -> LocalStudent:
    """Load a finished student; raises InputError where there is none or its base is not the one it was trained on."""
    from peft import PeftModel

    manifest = read_manifest(files)
    config = config.model_copy(update={"base": manifest.base, "revision": manifest.revision})
    if (found := base_sha(config)) != manifest.base_sha:
        message = f"the base {manifest.base} is not the one that {manifest.name!r} was trained on"
        raise InputError(message, hint="restore it, or distill anew under another --name")
    tokenizer, base = load_tokenizer(config), load_base(config)
    if manifest.adapters == "shared":
        folders = {"default": files.adapter}
    else:
        folders = {role.name: files.role_adapter(role.name) for role in manifest.roles}
    first, *others = folders
    model = PeftModel.from_pretrained(base, str(folders[first]), adapter_name=first)
    for name in others:
        model.load_adapter(str(folders[name]), adapter_name=name)
    model.eval()
    weights = [(name, (folder / "adapter_model.safetensors").read_bytes().hex()) for name, folder in folders.items()]
    fingerprint = content_id([found, manifest.template_sha, [role.model_dump() for role in manifest.roles], weights])
    persona = Persona(manifest.name, manifest.roles, manifest.adapters == "per-role")
    return LocalStudent(persona, model, tokenizer, fingerprint)
