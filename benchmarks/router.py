"""A simulated day through the router: cost against all-Gemini and wrong answers, for each policy, over the hit rate.

python benchmarks/router.py --pairs PAIRS.tsv.gz --out benchmarks/results/router.md

Real: router, cache, guard, encoder's vectors, prompts and prices. Simulated: who asks (topics by Zipf, a phrasing of the
topic at random; phrasings are questions that the pairs label as having one answer), what Gemini and the student say. An
answer names its topic, so that a served answer of another topic is counted as wrong; topics that the labels do not link
may still be one in truth, so this overstates. The student is right on 70 % of topics and surer where it is right. The chart, an
.svg beside the page, has cost over the hit rate for each policy, and cost and wrong answers over the share of misses sent to Gemini.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from page import deliver, head

from potstill.config import Config, with_values
from potstill.infer.batch import Summary, answer_all, summarise
from potstill.infer.cache import AnswerCache, OpenIndex
from potstill.infer.decide import Policy
from potstill.infer.index import MemoryIndex
from potstill.infer.loading import load_encoder
from potstill.infer.pairs import read_pairs
from potstill.infer.panel import Panel
from potstill.infer.router import Router
from potstill.infer.settings import make_settings
from potstill.infer.store import EntryStore
from potstill.pricing.book import load_prices
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Usage, canonical_json
from potstill.student.answers import Piece, StudentAnswer, StudentQuery
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.paid import free_answer
from potstill.workspace import Workspace

FILLER = " It depends on what you need it for, and on how much of it there is." * 17
"""Makes an answer about 300 tokens long."""
RIGHT = 0.7
ROLES = ("hardware-expert", "cost-analyst", "ai-expert")


def chance(*parts: object) -> float:
    """A number in 0..1 that is always the same for the same parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) / 2**64


@dataclass(frozen=True)
class World:
    """Topics, each a list of phrasings, and the vector of each phrasing."""

    topics: list[list[str]]
    topic_of: dict[str, int]
    vectors: dict[str, tuple[float, ...]]
    encoder: str

    def answer(self, question: str) -> str:
        """The right answer."""
        return f"Answer number {self.topic_of[question]}.{FILLER}"

    def day(self, count: int, exponent: float) -> list[str]:
        """Questions of one day: topic by Zipf, phrasing at random."""
        draw = random.Random(0)
        weights = [1 / rank**exponent for rank in range(1, len(self.topics) + 1)]
        return [draw.choice(self.topics[place]) for place in draw.choices(range(len(self.topics)), weights, k=count)]


class Known:
    """An encoder that has every vector already."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.id, self.dims = world.encoder, 384

    def unreadable(self, _text: str) -> str | None:
        """Nothing is."""
        return None

    def encode(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """Look the vectors up."""
        return [self._world.vectors[text] for text in texts]


class Student:
    """Right on a fixed share of the topics, and surer there."""

    name, roles, fingerprint = "simulated", ROLES, "simulated"

    def __init__(self, world: World) -> None:
        self._world = world

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all."""
        return [self._one(query) for query in queries]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Each answer in one piece."""
        for index, answer in enumerate(self.answer(queries)):
            yield Piece(index=index, text=answer.text, answer=answer)

    def _one(self, query: StudentQuery) -> StudentAnswer:
        question = query.messages[-1].content
        topic = self._world.topic_of[question]
        right = chance("right", topic) < RIGHT
        sure = -0.35 * chance("sure", topic, query.role) - (0.0 if right else 0.08)
        text = self._world.answer(question) if right else f"Something else.{FILLER}"
        return StudentAnswer(
            role=query.role, text=text, finish_reason="stop", prompt_tokens=50, completion_tokens=300, mean_logprob=sure
        )


class Teacher:
    """Always right, at the book's price for estimated tokens."""

    def __init__(self, world: World, config: Config) -> None:
        self._world, self._config = world, config
        self._book = load_prices(config.prices)

    async def ask(self, request: TeacherRequest) -> Answer:
        """Answer, choose or check."""
        asked = request.body["contents"][-1]["parts"][0]["text"]
        text = self._reply(asked, schema=request.body["generationConfig"].get("responseJsonSchema"))
        usage = Usage(
            input_tokens=estimate_tokens(canonical_json(request.body).decode()), output_tokens=estimate_tokens(text)
        )
        teacher = self._config.teacher
        priced = self._book.cost(usage, teacher.model, teacher.service, datetime.now(UTC).date())
        answer = free_answer(request, text)
        return answer.model_copy(update={"usage": usage, "cost_usd": priced.usd, "price_id": priced.price_id})

    def _reply(self, asked: str, schema: dict[str, object] | None) -> str:
        lines = asked.split("\n")
        question = asked if asked in self._world.topic_of else lines[lines.index("Question:") + 1]
        right = self._world.answer(question)
        if schema is None:
            return right
        fits = " ".join(right.split()) in asked
        if "best" in str(schema):
            return '{"best": 1}' if fits else '{"best": 0}'
        return '{"fits": true}' if fits else '{"fits": false}'


def world(pairs: Path, folder: Path, most: int) -> World:
    """Topics from the pairs that have one answer: questions linked by such pairs."""
    parents: dict[str, str] = {}

    def root(text: str) -> str:
        while parents.setdefault(text, text) != text:
            text = parents[text]
        return text

    for pair in read_pairs(pairs):
        if pair.same:
            parents[root(pair.question)] = root(pair.cached)
    groups: dict[str, list[str]] = {}
    for text in parents:
        groups.setdefault(root(text), []).append(text)
    topics = sorted(groups.values(), key=lambda group: (chance(group[0]), group))[:most]
    encoder = load_encoder("all-MiniLM-L6-v2", folder)
    texts = sorted({text for group in topics for text in group}, key=len)
    vectors = dict(zip(texts, encoder.encode(texts), strict=True))
    return World(topics, {text: place for place, group in enumerate(topics) for text in group}, vectors, encoder.id)


@dataclass(frozen=True)
class Way:
    """A policy under test; `threshold` on the mean log-probability goes with `uncertain`."""

    name: str
    decide: str
    decision: str = "merge"
    threshold: float | None = None
    student: bool = True


WAYS = (
    Way("cache, then Gemini alone", "always", student=False),
    Way("always, merge (source design)", "always", "merge"),
    Way("always, select", "always", "select"),
    Way("always, verify", "always", "verify"),
    Way("uncertain, verify, cautious", "uncertain", "verify", -0.1),
    Way("uncertain, verify, bold", "uncertain", "verify", -0.2),
    Way("never", "never"),
)

SWEPT = 0.8
SWEEP = (
    Way("never", "never"),
    *(
        Way(f"uncertain, verify, {threshold:g}", "uncertain", "verify", threshold)
        for threshold in (-0.3, -0.2, -0.15, -0.1, -0.07, -0.04)
    ),
    Way("always, verify", "always", "verify"),
)


async def run(made: World, way: Way, questions: Sequence[str], folder: Path) -> tuple[Summary, float, float, float]:
    """The day's summary, shares of wrong answers (all; semantic hits), and CPU milliseconds a question."""
    infer = {"decide": way.decide, "decision": way.decision}
    config = with_values(Config(), generate={"roles": ROLES}, cache={"encoder": "known"}, infer=infer)
    student = Student(made) if way.student else None
    settings = make_settings(config, Workspace(folder), student)
    if way.threshold is not None:
        object.__setattr__(settings, "policy", Policy("uncertain", way.threshold, "simulated"))
    panel = Panel(student, settings.asked, 256) if student else None
    teacher = Teacher(made, config)

    async def opened() -> Teacher:
        return teacher

    with EntryStore(folder / "entries.sqlite3") as store:
        cache = AnswerCache(store, lambda: Known(made), lambda _: OpenIndex(MemoryIndex()))
        router = Router(settings, cache, panel, opened, folder / "traces")
        began = time.process_time()
        result = await answer_all(router, questions, 1)
        spent = 1000 * (time.process_time() - began) / len(questions)
    rows = list(result.answers.values())
    wrong = [row for row in rows if row.answer != made.answer(row.question)]
    near = [row for row in rows if row.trace.route == "semantic"]
    wrong_near = sum(row.answer != made.answer(row.question) for row in near)
    summary = summarise([row.trace for row in rows], len(result.failures))
    return summary, len(wrong) / len(rows), wrong_near / max(1, len(near)), spent


@dataclass(frozen=True)
class Measured:
    """One policy on one day: shares of questions; `cost` is a multiple of Gemini alone; `spent_ms` CPU a question."""

    way: Way
    exact: float
    semantic: float
    asked: float
    cost: float
    break_even: float | None
    wrong: float
    wrong_near: float
    spent_ms: float

    @property
    def hits(self) -> float:
        """Share that the cache answered."""
        return self.exact + self.semantic

    @property
    def escalated(self) -> float:
        """Share of the misses that Gemini was asked about."""
        return self.asked / (1 - self.hits)

    def line(self) -> str:
        """One row of the table."""
        even = "-" if self.break_even is None else f"{self.break_even:.0%}"
        return (
            f"| {self.way.name} | {self.exact:.1%} | {self.semantic:.1%} | {self.asked:.1%} | {self.escalated:.0%} | "
            f"**{self.cost:.2f}** | {even} | {self.wrong:.1%} | {self.wrong_near:.1%} | {self.spent_ms:.1f} |"
        )


def measured(way: Way, found: tuple[Summary, float, float, float]) -> Measured:
    """The shares of a day."""
    summary, wrong, wrong_near, spent = found
    total = summary.questions
    return Measured(
        way,
        exact=summary.routes["exact"] / total,
        semantic=summary.routes["semantic"] / total,
        asked=(summary.routes["merged"] + summary.routes["teacher"]) / total,
        cost=float(summary.cost_usd / (summary.baseline_usd or Decimal(1))),
        break_even=summary.break_even,
        wrong=wrong,
        wrong_near=wrong_near,
        spent_ms=spent,
    )


def draw(days: Sequence[Sequence[Measured]], swept: Sequence[Measured], path: Path) -> None:
    """Cost over the hit rate for each policy; cost and wrong answers over the escalation rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, way in enumerate(WAYS):
        points = sorted((100 * day[place].hits, day[place].cost) for day in days)
        left.plot([x for x, _ in points], [y for _, y in points], marker="o", label=way.name)
    left.axhline(1, color="grey", linestyle=":")
    left.annotate("Gemini alone", (0.98, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="grey")
    left.set(xlabel="hit rate, %", ylabel="cost / all-Gemini", ylim=(0, 1.1), title="Cost over the hit rate")
    left.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.88))
    points = sorted((100 * one.escalated, one.cost, 100 * one.wrong) for one in swept)
    right.plot([point[0] for point in points], [point[1] for point in points], marker="o", color="tab:blue")
    right.set(xlabel="misses sent to Gemini, % (uncertain, verify; never to always)", ylim=(0, None))
    right.set_title(f"Over the escalation rate, at {swept[0].hits:.0%} hits")
    right.set_ylabel("cost / all-Gemini", color="tab:blue")
    beside = right.twinx()
    beside.plot([point[0] for point in points], [point[2] for point in points], marker="s", color="tab:red")
    beside.set_ylabel("wrong answers, %", color="tab:red")
    beside.set_ylim(0, None)
    figure.savefig(path, metadata={"Date": None})


HEAD = (
    (
        "| policy | exact | semantic | asked Gemini | of misses | cost / all-Gemini | pays from a hit rate of | wrong answers "
        "| wrong of semantic hits | CPU ms a question |"
    ),
    "|---|---|---|---|---|---|---|---|---|---|",
)


def one_day(made: World, way: Way, count: int, exponent: float, folder: Path) -> Measured:
    """A policy on a day of questions."""
    place = Path(tempfile.mkdtemp(dir=folder))
    return measured(way, asyncio.run(run(made, way, made.day(count, exponent), place)))


def main() -> None:
    """Simulate the days and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=10_000)
    parser.add_argument("--topics", type=int, default=4000)
    parser.add_argument("--exponents", type=float, nargs="*", default=[0.4, 0.8, 1.2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    page = head("The router, a simulated day", about(options.questions, options.topics))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = world(options.pairs, folder, options.topics)
        days = []
        for exponent in options.exponents:
            page += ["", f"## Zipf exponent {exponent:g}", "", *HEAD]
            days.append([])
            for way in WAYS:
                days[-1].append(one_day(made, way, options.questions, exponent, folder))
                page.append(days[-1][-1].line())
                print(page[-1], flush=True)
        swept = [one_day(made, way, options.questions, SWEPT, folder) for way in SWEEP]
        page += ["", f"## By threshold, Zipf exponent {SWEPT:g}", "", *HEAD, *(found.line() for found in swept)]
        if options.out:
            draw(days, swept, options.out.with_suffix(".svg"))
            page += ["", f"![Cost over hit rate and escalation rate]({options.out.stem}.svg)"]
    deliver(page, options.out)


def about(questions: int, topics: int) -> str:
    """What was simulated."""
    return (
        f"{questions:,} questions over {topics:,} topics, uncalibrated cache (cosine 0.95 with guard), "
        "gemini-3.5-flash-lite, answers of about 300 tokens, three roles. "
        f"A simulated student that is right on {RIGHT:.0%} of topics: the shape of the curve, not your figures."
    )


if __name__ == "__main__":
    main()
