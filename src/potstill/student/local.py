"""The student in this process: one base in memory once, its adapters, several roles in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.config import StudentConfig
from potstill.errors import InputError
from potstill.records import Message
from potstill.student.answers import Piece, QueryError, StudentAnswer, StudentQuery
from potstill.student.base import base_sha, load_base, load_tokenizer
from potstill.student.decoding import Row, Voice
from potstill.student.hub import Say, silent, tell
from potstill.student.lora import Adapter, AdapterBank, read_adapter
from potstill.student.manifest import (
    StudentManifest,
    StudentRole,
    adapter_folders,
    fingerprint_of,
    read_manifest,
    source_of,
)
from potstill.student.onednn import pack
from potstill.student.schema import SchemaCompiler
from potstill.student.slot_memory import Prefixes
from potstill.student.slots import SlotEngine, fits_slots
from potstill.student.static import StaticEngine
from potstill.student.template import encode_prompt, encode_sample, neutralised, stop_ids
from potstill.workspace import StudentFiles

SLOTS = 32
"""Queries that `answer` and `stream` decode together."""
PROBES = ("0", "Which one?", "(a) é")
"""User texts that share no beginning: what prompts with them have in common is the role's alone."""


@dataclass(frozen=True)
class Persona:
    """Who a model answers as: its name and its roles."""

    name: str
    roles: tuple[StudentRole, ...]


@dataclass(frozen=True)
class Served:
    """A role as it is served: its system prompt, its adapter, and what its prompts begin with."""

    system: str
    adapter: int | None
    beginning: tuple[int, ...]
    source: str

    @property
    def key(self) -> str:
        """Names what its prompts begin with, adapter included: the keys and values differ by adapter."""
        return f"{self.adapter}:{self.beginning}"


@dataclass(frozen=True)
class Loaded:
    """What a student's folder holds, read but not yet served: its roles, the adapter of each, and a hash of both.

    Roles that share an adapter have the same object.
    """

    manifest: StudentManifest
    adapters: dict[str, Adapter]
    source: str


class LocalStudent:
    """Implements `answers.Continuous` over transformers. One thread at a time, `prepare` of its engines aside."""

    def __init__(self, persona: Persona, model: Any, tokenizer: Any, fingerprint: str) -> None:
        """Serve a base as it is; `take` adds the roles of a trained student."""
        self.name = persona.name
        self.base_sha = fingerprint
        self._model = model.eval()
        pack(model)
        self._tokenizer = tokenizer
        self._voice = Voice(tokenizer, stop_ids(tokenizer))
        self._schemas = SchemaCompiler(tokenizer, self._voice.stops)
        self._bank = AdapterBank(model)
        self._prefixes = Prefixes()
        self._roles = {role.name: self._served(role.system, None, fingerprint) for role in persona.roles}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it answers as."""
        return tuple(self._roles)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that changes its answers: base, and each role's prompt, adapter and template."""
        return fingerprint_of(self.base_sha, {name: (role.system, role.source) for name, role in self._roles.items()})

    @property
    def prefix_hits(self) -> int:
        """Prompts whose system part was not read again."""
        return self._prefixes.hits

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries together, in their order."""
        found = {piece.index: piece.answer for piece in self.stream(queries) if piece.answer is not None}
        return [found[index] for index in range(len(queries))]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer piece by piece; raises InputError for an unknown role."""
        engine = self.open(max(1, min(SLOTS, len(queries))))
        prepared = [engine.prepare(query) for query in queries]
        return _all_pieces(engine, prepared)

    def open(self, slots: int) -> _LocalEngine:
        """An engine over this student's base and roles."""
        pad = self._tokenizer.pad_token_id
        return _LocalEngine(self, open_engine(self._model, self._bank, self._prefixes, pad, slots))

    def take(self, loaded: Loaded) -> None:
        """Serve a student's roles from the next query on; roles of the same name give way to them.

        Queries that run keep the adapter that they began with. Raises InputError where the adapters do not fit.
        """
        numbers = {adapter: self._bank.load(adapter) for adapter in dict.fromkeys(loaded.adapters.values())}
        for role in loaded.manifest.roles:
            number = numbers[loaded.adapters[role.name]]
            self._roles[role.name] = self._served(role.system, number, loaded.source)
        self.name = loaded.manifest.name

    def drop(self, role: str) -> None:
        """Serve a role no longer; raises InputError where there is none. Queries that run are finished."""
        if role not in self._roles:
            message = f"the student {self.name!r} has no role {role!r}"
            raise InputError(message, hint=f"it has {', '.join(self.roles)}")
        del self._roles[role]

    def tidy(self, in_use: set[int]) -> None:
        """Unload the adapters that no role and none of the queries `in_use` needs."""
        needed = in_use | {role.adapter for role in self._roles.values() if role.adapter is not None}
        for number in self._bank.numbers - needed:
            self._bank.unload(number)

    def nll(self, role: str, messages: Sequence[Message], max_length: int) -> tuple[float, int]:
        """What the chat's last answer costs this role: nats in all, and its tokens (stop token included).

        Logits are made for the answer's positions only. A chat is cut at `max_length`; (0, 0) where nothing is left.
        """
        import torch

        encoded = encode_sample(self._tokenizer, messages)
        ids, learned = encoded.ids[:max_length], encoded.learned[:max_length]
        places = [place for place, keep in enumerate(learned) if keep]
        if not places:
            return 0.0, 0
        self._bank.select([self._roles[role].adapter])
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            before = torch.tensor([place - 1 for place in places], device=device)
            out = self._model(input_ids=torch.tensor([ids], device=device), use_cache=False, logits_to_keep=before)
            wanted = torch.tensor([ids[place] for place in places], device=device)
            return float(torch.nn.functional.cross_entropy(out.logits[0].float(), wanted, reduction="sum")), len(places)

    def row(self, query: StudentQuery) -> Row:
        """A query as a row to decode; raises InputError for an unknown role or a schema that is not supported."""
        served = self._roles.get(query.role)
        if served is None:
            message = f"the student {self.name!r} has no role {query.role!r}"
            raise InputError(message, hint=f"it has {', '.join(self.roles)}")
        prompt = self._prompt(query, served)
        length = len(served.beginning)
        shared = length if tuple(prompt[:length]) == served.beginning and len(prompt) > length else 0
        constraint = None if query.json_schema is None else self._schemas.compile(query.json_schema)
        return Row(query, prompt, self._voice, served.adapter, served.key, shared, constraint)

    @property
    def context(self) -> int | None:
        """Tokens that the base can look at, prompt and answer together; None where it does not say."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self._model.config.get_text_config().vocab_size)

    def _prompt(self, query: StudentQuery, served: Served) -> list[int]:
        if query.text is not None:
            ids = self._tokenizer(neutralised(self._tokenizer, query.text), add_special_tokens=False)["input_ids"]
            start = self._tokenizer.bos_token_id
            return [*([] if start is None else [start]), *ids]
        messages = query.messages
        if not any(message.role == "system" for message in messages):
            messages = (Message(role="system", content=served.system), *messages)
        return encode_prompt(self._tokenizer, messages)

    def _served(self, system: str, adapter: int | None, source: str) -> Served:
        """A role with the tokens that all its prompts begin with, found by rendering several."""
        prompts = [
            encode_prompt(self._tokenizer, (Message(role="system", content=system), Message(role="user", content=text)))
            for text in PROBES
        ]
        length = 0
        while len({tuple(prompt[: length + 1]) for prompt in prompts}) == 1 and length < len(prompts[0]):
            length += 1
        return Served(system, adapter, tuple(prompts[0][:length]), source)


class _LocalEngine:
    """An engine that checks queries against the student's roles and context before they join."""

    def __init__(self, student: LocalStudent, engine: SlotEngine | StaticEngine) -> None:
        self._student = student
        self._engine = engine

    def prepare(self, query: StudentQuery) -> Row:
        """Render and check a query; raises QueryError where it is longer than the base can look at."""
        row = self._student.row(query)
        context = self._student.context
        if context is not None:
            row.room = context - len(row.prompt)
        if row.room < 1:
            message = f"the prompt has {len(row.prompt)} tokens, and the base looks at {context} at most"
            raise QueryError(message, field="messages", hint="a shorter prompt")
        if any(not 0 <= token < self._student.vocabulary for token in query.logit_bias):
            message = f"logit_bias names a token that the base does not have; it has {self._student.vocabulary}"
            raise QueryError(message, field="logit_bias")
        return row

    def add(self, prepared: Any) -> int:
        """Let a row join."""
        return self._engine.add(prepared)

    def cancel(self, number: int) -> None:
        """Drop a row."""
        self._engine.cancel(number)

    def step(self) -> list[Piece]:
        """One token for every running row."""
        return self._engine.step()

    @property
    def running(self) -> int:
        """Rows that have a place."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """Rows that wait for one."""
        return self._engine.waiting

    def swap(self, change: Any) -> None:
        """Change the student's roles between two steps, then unload what nothing needs any more."""
        change(self._student)
        self._student.tidy(self._engine.adapters)


def open_engine(model: Any, bank: AdapterBank, prefixes: Prefixes, pad: int, slots: int) -> SlotEngine | StaticEngine:
    """An engine over a base and its adapters: slots where its family fits them, else static batches."""
    return SlotEngine(model, bank, prefixes, slots) if fits_slots(model) else StaticEngine(model, bank, pad, slots)


def _all_pieces(engine: _LocalEngine, prepared: Sequence[Row]) -> Iterator[Piece]:
    places = {engine.add(row): index for index, row in enumerate(prepared)}
    while engine.running or engine.waiting:
        for piece in engine.step():
            yield piece.model_copy(update={"index": places[piece.index]})


def read_student(files: StudentFiles) -> Loaded:
    """Read a finished student's roles and adapters; raises InputError where there is none."""
    manifest = read_manifest(files)
    folders = adapter_folders(files, manifest.adapters, manifest.roles)
    read = {folder: read_adapter(folder) for folder in dict.fromkeys(folders.values())}
    adapters = {role: read[folder] for role, folder in folders.items()}
    return Loaded(manifest, adapters, source_of(files, manifest))


def load_student(files: StudentFiles, config: StudentConfig, say: Say = silent) -> LocalStudent:
    """Load a finished student; raises InputError where there is none or its base is not the one it was trained on."""
    manifest = read_manifest(files)
    config = config.model_copy(update={"base": manifest.base, "revision": manifest.revision})
    if (found := base_sha(config)) != manifest.base_sha:
        message = f"the base {manifest.base} is not the one that {manifest.name!r} was trained on"
        raise InputError(message, hint="restore it, or distill anew under another --name")
    loaded = read_student(files)
    tell(config.base, say)
    student = LocalStudent(Persona(manifest.name, ()), load_base(config), load_tokenizer(config), found)
    student.take(loaded)
    return student
