"""A few prompts into many: self-instruct (arXiv 2212.10560), evolve (arXiv 2304.12244), and questions to documents.

What a round asks is decided by the pool at its beginning, the config and the seed alone, and answers are taken in the
order of the requests: the same ledger grows the same prompts, whatever came in first. A round of which a request failed
ends the growing, because what the later rounds ask, and are paid for, hangs on it; a rerun asks for just that request.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from potstill.config import Config
from potstill.errors import PartialError, TeacherError
from potstill.files import LineFile
from potstill.generate.documents import Passage, read_passages
from potstill.generate.forms import TEXTS, read_texts
from potstill.generate.languages import fits, language_of
from potstill.generate.neighbours import Neighbours
from potstill.generate.phrases import refusal_in
from potstill.generate.shelf import Shelf
from potstill.generate.sift import Rejection
from potstill.prompts import Prompt, PromptFiles, fill, load_personas, load_template
from potstill.records import Message, Record
from potstill.teacher.calls import Answer, Asks, TeacherRequest, build_request
from potstill.wording import counted
from potstill.workspace import Workspace

EXAMPLES = 6
"""Prompts of the pool that a self-instruct request shows."""
REQUESTS_A_ROUND = 64
MAX_PROMPT_CHARS = 2000
MAX_OUTPUT_TOKENS = 2048
"""Limit of one answer with new prompts, in tokens."""
TASK_WORDS = ("rewritten question", "new question:", "given question", "改寫後的問題", "新問題：")
"""Words of the task, which do not belong in a prompt (the elimination step of arXiv 2304.12244)."""


class Grown(Record):
    """A prompt that the teacher made, and from what: a line of `prompts/grown.jsonl`."""

    prompt: str
    method: str
    parents: tuple[str, ...]
    persona: str | None = None
    source: str | None = None
    round: int
    key: str


class NotGrown(Record):
    """A prompt that the teacher made and that was left out: a line of `prompts/rejected.jsonl`."""

    grown: Grown
    reason: str
    detail: str


@dataclass(frozen=True)
class Ask:
    """One request for new prompts, and what is known of them beforehand."""

    request: TeacherRequest
    method: str
    parents: tuple[str, ...]
    round: int
    persona: str | None = None
    passage: Passage | None = None


class Pool:
    """Seeds and what has grown from them, on disk.

    `alike` holds all of them to compare with, and at the beginning the seeds; `forbidden` what no prompt may come near.
    """

    def __init__(self, alike: Neighbours, forbidden: Neighbours | None = None) -> None:
        self.alike, self.forbidden = alike, forbidden
        self.grown = Shelf(alike.database, "grown", Grown)
        self.rejected = Shelf(alike.database, "rejected", NotGrown)
        self._seeds = len(alike)

    def __len__(self) -> int:
        """How many prompts a round can build on."""
        return self._seeds + len(self.grown)

    def text(self, number: int) -> str:
        """One of them."""
        return self.alike.text(number) if number < self._seeds else self.grown[number - self._seeds].prompt

    def growth(self) -> Growth:
        """What has grown, in numbers."""
        return Growth(len(self.grown), dict(Counter(item.reason for item in self.rejected).most_common()))


@dataclass(frozen=True)
class Growth:
    """How many prompts grew, and why others were left out."""

    grown: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Growing:
    """What requests are made of: config and texts, read once."""

    config: Config
    personas: tuple[str, ...]
    operations: tuple[str, ...]
    templates: dict[str, str]

    @classmethod
    def of(cls, config: Config) -> Growing:
        """Load the templates and personas of a config; raises InputError for one that cannot be read."""
        names = ("self-instruct", "evolve", "questions", "grounded", "failures")
        lines = load_template("operations", config.language).splitlines()
        return cls(
            config,
            load_personas(config.generate.grow.personas),
            tuple(line for line in lines if line.strip() and not line.startswith("#")),
            {name: load_template(name, config.language) for name in names},
        )

    def from_passage(self, passage: Passage, number: int) -> Ask:
        """Ask what a passage answers."""
        documents = self.config.generate.documents
        values = {"count": str(documents.questions), "source": passage.source, "passage": passage.text}
        request = self.request(fill(self.templates["questions"], values, origin="template questions"), 0)
        return Ask(request, "document", (), number, passage=passage)

    def round(self, number: int, pool: Pool, wanted: int) -> list[Ask]:
        """The requests of a round, which want so many prompts more; each is drawn by the seed, round and place."""
        grow = self.config.generate.grow
        asks: list[Ask] = []
        while wanted > 0 and len(asks) < REQUESTS_A_ROUND:
            draw = random.Random(f"{grow.seed}:{number}:{len(asks)}")  # noqa: S311  (reproducible, nothing secret)
            instructs = grow.method == "self-instruct" or (grow.method == "both" and len(asks) % 2 == 0)
            place = number * REQUESTS_A_ROUND + len(asks)
            ask = self._instruct(place, pool, draw) if instructs else self._evolve(place, pool, draw)
            wanted -= grow.per_request if instructs else 1
            asks.append(ask)
        return asks

    def text(self, question: str, passage: Passage | None) -> str:
        """The prompt for a question: itself, or with the passage that it is to be answered from."""
        if passage is None or not self.config.generate.documents.ground:
            return question
        values = {"question": question, "passage": passage.text}
        return fill(self.templates["grounded"], values, origin="template grounded").strip()

    def _instruct(self, place: int, pool: Pool, draw: random.Random) -> Ask:
        shown = [pool.text(number) for number in draw.sample(range(len(pool)), min(EXAMPLES, len(pool)))]
        persona = self._persona(draw)
        values = {
            "count": str(self.config.generate.grow.per_request),
            "examples": "\n".join(f"- {' '.join(text.split())}" for text in shown),
            "persona": persona or "",
        }
        request = self.request(fill(self.templates["self-instruct"], values, origin="template self-instruct"), place)
        return Ask(
            request, "self-instruct", tuple(prompt_id(text) for text in shown), place // REQUESTS_A_ROUND, persona
        )

    def _evolve(self, place: int, pool: Pool, draw: random.Random) -> Ask:
        parent = pool.text(draw.randrange(len(pool)))
        operation, persona = draw.choice(self.operations), self._persona(draw)
        values = {"question": parent, "operation": operation, "persona": persona or ""}
        request = self.request(fill(self.templates["evolve"], values, origin="template evolve"), place)
        return Ask(request, "evolve", (prompt_id(parent),), place // REQUESTS_A_ROUND, persona)

    def _persona(self, draw: random.Random) -> str | None:
        return draw.choice(self.personas) if self.personas else None

    def request(self, prompt: str, sample: int) -> TeacherRequest:
        """The request for new prompts; `sample` tells equal ones apart."""
        return build_request(
            self.config.teacher,
            (Message(role="user", content=prompt),),
            temperature=self.config.generate.grow.temperature,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            sample=sample,
            schema=TEXTS,
        )


@contextmanager
def seeded(config: Config) -> Iterator[Pool]:
    """The pool that a config's growing begins with: its prompt files."""
    with closing(Neighbours(config.generate.grow.near_duplicates)) as alike:
        for prompt in PromptFiles(config.generate.prompts, may_be_none=True):
            alike.add(prompt.text)
        yield Pool(alike)


async def grow(config: Config, teacher: Asks, pool: Pool) -> None:
    """Grow the prompts of a config into a pool; raises PartialError where a request failed, and what the teacher raises.

    Questions to documents come first and are seeds too.
    """
    growing, generate = Growing.of(config), config.generate
    asks = [growing.from_passage(passage, 0) for passage in read_passages(generate.documents)]
    take(pool, growing, whole(asks, await settled(asks, teacher, config)), most=None)
    target = len(pool.grown) + (generate.grow.target or 0)
    for number in range(1, generate.grow.max_rounds + 1):
        if len(pool.grown) >= target or not len(pool):
            return
        asks = growing.round(number, pool, target - len(pool.grown))
        before = len(pool.grown)
        take(pool, growing, whole(asks, await settled(asks, teacher, config)), most=target)
        if len(pool.grown) == before and number > 1:
            return


def take(pool: Pool, growing: Growing, answered: Iterable[tuple[Ask, Answer]], *, most: int | None) -> None:
    """Take the new prompts of some answers into the pool, in order, or note why not. Deterministic."""
    for ask, answer in answered:
        for text in read_texts(answer.text) or ("",):
            if most is not None and len(pool.grown) >= most:
                return
            grown = Grown(
                prompt=growing.text(text, ask.passage) if text else "",
                method=ask.method,
                parents=ask.parents,
                persona=ask.persona,
                source=ask.passage.source if ask.passage else None,
                round=ask.round,
                key=answer.key,
            )
            fault = _fault(text, growing.config.language, answer) or _twin(text, pool)
            if fault is not None:
                pool.rejected.append(NotGrown(grown=grown, reason=fault.reason, detail=fault.detail))
            else:
                pool.alike.add(text)
                pool.grown.append(grown)


def write_grown(workspace: Workspace, pool: Pool) -> None:
    """Write what has grown and what was left out."""
    write_rows(workspace.grown, pool.grown)
    write_rows(workspace.not_grown, pool.rejected)


def write_rows(path: Path, rows: Iterable[Record]) -> None:
    """Write a file of records, whole or not at all."""
    file = LineFile(path)
    try:
        for row in rows:
            file.write(row.to_line())
        file.publish()
    finally:
        file.discard()


def prompt_id(text: str) -> str:
    """The id of a prompt with this text."""
    return Prompt(text=text, source="").id


def _fault(text: str, language: str, answer: Answer) -> Rejection | None:
    """What is wrong with a new prompt by itself."""
    if not text:
        return Rejection("no prompt", f"{answer.finish_reason}, {counted(len(answer.text), 'character')}")
    if len(text) > MAX_PROMPT_CHARS:
        return Rejection("too long", f"{len(text)} characters")
    if not fits(found := language_of(text), language):
        return Rejection("language", f"{found}, not {language}")
    if (words := refusal_in(text)) is not None:
        return Rejection("refusal", words)
    if (word := next((word for word in TASK_WORDS if word in text.casefold()), None)) is not None:
        return Rejection("talks about the task", word)
    return None


def _twin(text: str, pool: Pool) -> Rejection | None:
    for reason, others in (("near a held-out question", pool.forbidden), ("near-duplicate", pool.alike)):
        if others is not None and (near := others.near(text)):
            return Rejection(reason, f"{near[0].similarity:.2f} like {others.text(near[0].number)}")
    return None


async def settled(asks: Sequence[Ask], teacher: Asks, config: Config) -> list[Answer | BaseException]:
    """What became of each request of a round, in order; all that is in flight comes in."""
    gate = asyncio.Semaphore(config.teacher.max_concurrency)

    async def one(ask: Ask) -> Answer:
        async with gate:
            return await teacher.ask(ask.request)

    return await asyncio.gather(*(one(ask) for ask in asks), return_exceptions=True)


def whole(asks: Sequence[Ask], answers: Sequence[Answer | BaseException]) -> Iterator[tuple[Ask, Answer]]:
    """A round's requests with their answers; raises PartialError where one failed, and what else was raised."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if not isinstance(error, TeacherError):
            raise error
    if errors:
        message = f"growing prompts: {len(errors)} of {counted(len(asks), 'request')} failed: {errors[0]}"
        raise PartialError(message, hint="run the same command again: it asks for just these, and goes on from there")
    return ((ask, answer) for ask, answer in zip(asks, answers, strict=True) if isinstance(answer, Answer))
