"""Roles and prompts in files: load them, fill templates strictly, name them by hash.

Role file (`roles/<name>.yaml`): `name`, `description` and `system`, the last two a mapping of language to text.
Prompt files: `.txt` (one prompt a line, `#` starts a comment), `.jsonl` (`{"prompt": ...}` a line) and `.yaml`
(`prompts: [...]`, or a `template` with `{{ name }}` places and `variables`: name -> list, every combination).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from potstill.config import Config
from potstill.errors import InputError
from potstill.files import check_text, file_sha, parse_json, read_lines, read_text, read_yaml
from potstill.records import content_id, from_data, text_sha
from potstill.workspace import NAME_PATTERN, Workspace, shipped

FileModel = TypeVar("FileModel", bound=BaseModel)


class Role(BaseModel):
    """A persona: a name, its system prompt in one language, and the hash of that prompt."""

    model_config = ConfigDict(frozen=True)

    name: str
    language: str
    system: str

    @property
    def sha(self) -> str:
        """SHA-256 of the system prompt."""
        return text_sha(self.system)


class Prompt(BaseModel):
    """One question for the teacher. `id` is a hash of the text; `source` is `file:line`."""

    model_config = ConfigDict(frozen=True)

    text: str
    source: str

    @property
    def id(self) -> str:
        """Content id of the text."""
        return content_id({"prompt": self.text})


class _Seen:
    """Which texts were there before. Their hashes stand in a temporary database that spills to disk: memory stays flat."""

    CACHE_KIB = 4_096

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # one thread at a time
        self._database.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute(f"PRAGMA cache_size = -{self.CACHE_KIB}")
        self._database.execute("BEGIN")

    def is_new(self, text: str) -> bool:
        """Whether a text comes for the first time."""
        name = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (name,)).rowcount == 1

    def close(self) -> None:
        """Let go of the temporary file."""
        self._database.close()


class _RoleFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME_PATTERN)
    description: dict[str, str]
    system: dict[str, str]


class _PromptFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prompts: list[str] | None = None
    template: str | None = None
    variables: dict[str, list[str]] = {}


def load_roles(names: Sequence[str], language: str) -> tuple[Role, ...]:
    """Load roles by file or by shipped name, in one language; raises InputError naming file and field."""
    roles = tuple(_load_role(name, language) for name in names)
    seen: set[str] = set()
    for role in roles:
        if role.name in seen:
            message = f"role {role.name!r} is given twice"
            raise InputError(message)
        seen.add(role.name)
    return roles


def shipped_roles() -> tuple[str, ...]:
    """Names of the roles that come with potstill."""
    return tuple(sorted(path.stem for path in (shipped("prompts") / "roles").glob("*.yaml")))


class PromptFiles:
    """The prompts of some files, each once, in order. Every pass reads the files anew: nothing is held per prompt."""

    def __init__(self, files: Sequence[str], *, may_be_none: bool = False) -> None:
        """`may_be_none`: no file at all is no error."""
        self.files = tuple(files)
        self._may_be_none = may_be_none
        self._count: int | None = None

    def __iter__(self) -> Iterator[Prompt]:
        """Stream the prompts; raises InputError for a bad line, an empty file, or where there is no prompt at all."""
        empty = True
        with closing(_Seen()) as seen:
            for name in self.files:
                for prompt in stream_prompt_file(name):
                    empty = False
                    if seen.is_new(prompt.text):
                        yield prompt
        if empty and not self._may_be_none:
            message = "no prompts"
            raise InputError(message, hint="name a prompt file: generate.prompts, or --prompts FILE")

    def __len__(self) -> int:
        """How many there are, by one pass."""
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def expect(self, count: int) -> None:
        """Take the number of prompts from an earlier pass over the same files."""
        self._count = count

    @property
    def fingerprint(self) -> str:
        """Names the files by their bytes."""
        return content_id([file_sha(_find(name, "tasks", "prompt file")) for name in self.files])


def prompt_files(config: Config) -> PromptFiles:
    """The prompts of a config: its files, those grown from them or from documents, and those of second rounds."""
    generate, workspace = config.generate, Workspace(Path(config.workspace))
    grown = workspace.grown
    grows = bool(generate.grow.target or generate.documents.files)
    has_grown = grows and grown.is_file() and grown.stat().st_size > 0
    files = [*generate.prompts, *([str(grown)] if has_grown else [])]
    files += sorted(str(path) for path in workspace.failure_rounds.glob("*.jsonl"))
    return PromptFiles(files, may_be_none=generate.from_traces or bool(generate.documents.files))


def load_prompts(files: Sequence[str]) -> tuple[Prompt, ...]:
    """All prompts of all files, each once, in order; raises InputError for a bad line or where there is none."""
    return tuple(iter(PromptFiles(files)))


def read_prompt_file(name: str) -> tuple[Prompt, ...]:
    """All prompts of one file in order, repeated ones too; raises InputError for a bad line or where there is none."""
    return tuple(stream_prompt_file(name))


def stream_prompt_file(name: str) -> Iterator[Prompt]:
    """The same, one prompt at a time; raises InputError when it comes to what is wrong."""
    path = _find(name, "tasks", "prompt file")
    empty = True
    for prompt in _read_prompts(path):
        empty = False
        yield prompt
    if empty:
        message = f"{path}: no prompts in it"
        raise InputError(message)


def load_template(name: str, language: str) -> str:
    """A user's template by its file, or a shipped one, `templates/<name>.<language>.txt`."""
    path = Path(name)
    if path.suffix and path.is_file():
        return read_text(path, "template")
    return read_text(shipped("prompts") / "templates" / f"{path.name}.{language}.txt", "template")


def load_personas(files: Sequence[str]) -> tuple[str, ...]:
    """People who might ask, one a line, each once; shipped files by name."""
    lines = (persona.text for name in files for persona in _read_txt(_find(name, "personas", "persona file")))
    return tuple(dict.fromkeys(lines))


def load_schema(file: str | None) -> dict[str, Any] | None:
    """The JSON Schema that answers must follow; raises InputError for a file that is none."""
    if file is None:
        return None
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        schema = parse_json(read_text(Path(file), "JSON Schema"))
        if not isinstance(schema, dict):
            message = f"{file}: a JSON Schema is an object"
            raise InputError(message)
        validator_for(schema).check_schema(schema)
    except json.JSONDecodeError as error:
        message = f"{file}:{error.lineno}: not JSON: {error.msg}"
        raise InputError(message) from error
    except SchemaError as error:
        message = f"{file}: not a JSON Schema: {error.message} (at {error.json_path})"
        raise InputError(message) from error
    return schema


def fill(template: str, values: Mapping[str, str], *, origin: str = "template") -> str:
    """Fill the `{{ name }}` places of a template with values, which stay plain text.

    Strict both ways: a place without a value, or a value without a place, raises InputError.
    """
    from jinja2 import StrictUndefined, TemplateError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    try:
        places = meta.find_undeclared_variables(environment.parse(template))
        if places != set(values):
            difference = ", ".join(sorted(places ^ set(values)))
            message = f"{origin}: places and values differ: {difference}"
            raise InputError(message)
        return environment.from_string(template).render(values)
    except TemplateError as error:
        message = f"{origin}: {error}"
        raise InputError(message) from error


def _load_role(name: str, language: str) -> Role:
    path = _find(name, "roles", "role")
    data = from_data(_RoleFile, read_yaml(path, "file"), path)
    if language not in data.system:
        message = f"{path}: system: no text for language {language!r}, only {', '.join(sorted(data.system))}"
        raise InputError(message)
    system = data.system[language].strip()
    if not system:
        message = f"{path}: system.{language}: empty"
        raise InputError(message)
    return Role(name=data.name, language=language, system=system)


def _find(name: str, kind: str, what: str) -> Path:
    """A file of the user's by path, or a shipped one by name (with or without its suffix)."""
    path = Path(name)
    if path.is_file():
        return path
    folder = shipped("prompts") / kind
    for candidate in sorted(folder.glob("*")):
        if name in (candidate.name, candidate.stem):
            return candidate
    known = ", ".join(sorted(candidate.stem for candidate in folder.glob("*")))
    message = f"{what} not found: {name}"
    raise InputError(message, hint=f"a file, or one of the shipped: {known}")


def _read_prompts(path: Path) -> Iterator[Prompt]:
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".yaml": _read_yaml, ".yml": _read_yaml}
    if path.suffix not in readers:
        message = f"{path}: a prompt file ends in {', '.join(readers)}"
        raise InputError(message)
    return readers[path.suffix](path)


def _read_txt(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_lines(path, "prompt file"), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield Prompt(text=text, source=f"{path}:{number}")


def _read_jsonl(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(read_lines(path, "prompt file"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            message = f"{path}:{number}: not JSON: {error.msg} (column {error.colno})"
            raise InputError(message) from error
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            message = f"{path}:{number}: prompt: a text is needed"
            raise InputError(message)
        check_text(text, f"{path}:{number}: prompt")
        yield Prompt(text=text.strip(), source=f"{path}:{number}")


def _read_yaml(path: Path) -> Iterator[Prompt]:
    data = from_data(_PromptFile, read_yaml(path, "file"), path)
    if (data.prompts is None) == (data.template is None):
        message = f"{path}: either `prompts` or `template` with `variables`"
        raise InputError(message)
    if data.prompts is not None:
        texts = iter(data.prompts)
    else:
        template = data.template or ""
        names = list(data.variables)
        combinations = itertools.product(*data.variables.values())
        texts = (fill(template, dict(zip(names, row, strict=True)), origin=str(path)) for row in combinations)
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            message = f"{path}: prompt {number}: empty"
            raise InputError(message)
        yield Prompt(text=text.strip(), source=f"{path}:#{number}")
