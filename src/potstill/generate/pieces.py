"""One request of a paid step before it is made: how long it will usually be, how long at most, and its price.

Lengths are those of the ledger where it has enough of a step's answers by the model, whatever they were about; else
what follows from the plan: a played user's question is as long as a prompt, a rationale as long as an answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from itertools import islice
from statistics import fmean

from potstill.config import Config
from potstill.generate import converse, grow, judge
from potstill.generate.plan import Plan
from potstill.generate.rationales import Rationales
from potstill.generate.refine import beside
from potstill.generate.todo import Todo
from potstill.ledger import LedgerView
from potstill.pricing.book import PriceBook, load_prices
from potstill.pricing.intervals import ENOUGH, total_interval
from potstill.pricing.tokens import estimate_tokens
from potstill.prompts import load_template
from potstill.records import Message, Sample, Usage
from potstill.teacher.calls import TeacherRequest

SHOWN = 200
"""Prompts from which the usual length of one is taken where no cell is to be paid for."""
ASSUMED_SHARE = 0.5
"""Share of its token limit that an answer is taken to use while there is no history."""
HISTORY = 2000
"""Earlier answers that an expectation stands on at most."""
LISTED_TOKENS = 6
"""What JSON adds to each new prompt, in tokens."""
OWN = ("new_answers", "second_tries")
"""What is asked under the plan's own name and service."""


@dataclass(frozen=True)
class Output:
    """Tokens of an answer: its text, and the thinking that is billed with it."""

    text: float
    thinking: float = 0.0


@dataclass(frozen=True)
class Piece:
    """One request in tokens: input as expected and at most, the limit of its output, and the output expected."""

    size: float
    bound: int
    limit: int
    output: Output


@dataclass(frozen=True)
class Talk:
    """A chat in tokens: its system prompt and its turns as expected, and all of it at most."""

    system: float
    turns: float
    bound: int

    def more(self, turn: float, limit: int) -> Talk:
        """With one turn more, of a length as expected, and at most."""
        return replace(self, turns=self.turns + turn, bound=self.bound + limit)


def answers(ledger: LedgerView, config: Config) -> list[tuple[int, int]]:
    """Tokens of text and of thinking of earlier answers to cells; their second tries count as a step."""
    limit = config.generate.truncated_limit
    again = None if limit is None or limit <= config.generate.max_output_tokens else limit
    return ledger.outputs(config.teacher.model, "generate", HISTORY, but_limit=again)


class Prices:
    """What the requests of each step cost today."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._book: PriceBook = load_prices(config.prices)
        self._today = datetime.now(UTC).date()
        self._judging = judge.judging(config)

    def model(self, name: str) -> str:
        """The model that a step asks."""
        return self._of(name).teacher.model

    def of(self, name: str, usage: Usage) -> Decimal:
        """Dollars of one request of a step."""
        teacher = self._of(name).teacher
        return self._book.cost(usage, teacher.model, teacher.service, self._today).usd

    def expected(self, name: str, piece: Piece) -> Decimal:
        """Dollars of a request as long as it usually is."""
        output = round(piece.output.text + piece.output.thinking)
        return self.of(name, Usage(input_tokens=round(piece.size), output_tokens=output))

    def worst(self, name: str, piece: Piece, base: int = 0) -> Decimal:
        """The most that it can cost, with `base` tokens of input beside its own."""
        teacher = self._of(name).teacher
        return self._book.worst_case(
            teacher.model,
            teacher.service,
            self._today,
            input_tokens=piece.bound + base,
            max_output_tokens=piece.limit,
            thinking_budget=teacher.thinking_budget,
        )

    def _of(self, name: str) -> Config:
        config = self._judging if name == "judge" else self._config
        return config if name in OWN else beside(config)


class Lengths:
    """The usual lengths of a plan's parts, and the requests that they make."""

    def __init__(self, plan: Plan, ledger: LedgerView, todo: Todo, prices: Prices) -> None:
        self._plan, self._ledger, self._todo, self._prices = plan, ledger, todo, prices
        self._config, self._generate = plan.config, plan.config.generate
        self._known: dict[str, Output | None] = {}

    @cached_property
    def system(self) -> float:
        """Tokens of a role's system prompt."""
        return fmean(estimate_tokens(role.system) for role in self._plan.roles)

    @cached_property
    def prompt(self) -> float:
        """Tokens of a prompt: of those still to be asked, else of the first ones."""
        if self._todo.requests:
            return max(0.0, self._todo.input_tokens / self._todo.requests - self.system)
        shown = [estimate_tokens(prompt.text) for prompt in islice(self._plan.prompts, SHOWN)]
        return fmean(shown) if shown else 0.0

    @cached_property
    def answer(self) -> Output:
        """One of the plan's answers."""
        most = self._generate.max_output_tokens
        known = self._history("new_answers") or Output(most * ASSUMED_SHARE)
        return replace(known, text=min(known.text, most))

    def output(self, name: str, limit: int, assumed: float) -> Output:
        """An answer of a step: as the ledger's were, else `assumed` after as much thinking as for the plan's answers."""
        known = self._history(name) or Output(assumed, self.answer.thinking)
        return replace(known, text=min(known.text, limit))

    @cached_property
    def longest_new(self) -> int:
        """Tokens of the request for an answer to a new prompt, at most."""
        documents = self._generate.documents
        passage = documents.chunk_chars if documents.ground else 0
        return max(len(role.system.encode()) for role in self._plan.roles) + grow.MAX_PROMPT_CHARS + passage

    def new_prompts(self, template: str, count: float, shown: float) -> Piece:
        """A request for so many new prompts that shows so many tokens of known ones, or of a document."""
        text, limit = load_template(template, self._config.language), grow.MAX_OUTPUT_TOKENS
        longest = max(self._todo.bounds, default=0)
        most = max(grow.EXAMPLES * max(grow.MAX_PROMPT_CHARS, longest), self._generate.documents.chunk_chars)
        output = self.output("grow", limit, count * (self.prompt + LISTED_TOKENS))
        return Piece(estimate_tokens(text) + shown, len(text.encode()) + most, limit, output)

    def steps(self) -> dict[str, tuple[Piece, ...]]:
        """What each step asks for one answer that is kept all the way; the bounds lack the prompt's."""
        generate = self._generate
        asked: dict[str, tuple[Piece, ...]] = {}
        if generate.truncated_limit is not None and generate.truncated_limit > generate.max_output_tokens:
            asked["second_tries"] = (self.again(),)
        if generate.turns > 1:
            asked["converse"] = tuple(self.turns(self.talk()))
        if generate.judge.enabled:
            asked["judge"] = (self.mark(),)
        if generate.rationales.enabled:
            asked["rationale"] = (self.reason(),)
        return asked

    def first(self, cells: int) -> tuple[Piece, Piece, Piece]:
        """The request for an answer itself: as expected, and at both ends of the interval for so many."""
        limit, usual = self._generate.max_output_tokens, self.answer
        known = [float(text + thinking) for text, thinking in answers(self._ledger, self._config)]
        span = total_interval(known, cells)
        ends = (usual, usual) if span is None else (Output(span.low / cells), Output(span.high / cells))
        size = self.system + self.prompt
        return Piece(size, 0, limit, usual), Piece(size, 0, limit, ends[0]), Piece(size, 0, limit, ends[1])

    def again(self) -> Piece:
        """A second try, which is expected to end somewhere between the two limits; its bound lacks the prompt's."""
        limit = self._generate.truncated_limit or 0
        middle = (self._generate.max_output_tokens + limit) / 2
        return Piece(self.system + self.prompt, 0, limit, replace(self.answer, text=middle))

    def talk(self) -> Talk:
        """A chat with its first answer; its bound lacks the prompt's."""
        return Talk(self.system, self.prompt + self.answer.text, self._generate.max_output_tokens)

    def whole(self) -> Talk:
        """A chat with all its turns; its bound lacks the prompt's."""
        talk = self.talk()
        for piece in self.turns(talk):
            talk = talk.more(piece.output.text, piece.limit)
        return talk

    def turns(self, talk: Talk, answered: int = 0) -> Iterator[Piece]:
        """What a chat still asks for, turn by turn: each request reads what came before it."""
        limit = self._generate.max_output_tokens
        question, answer = self._turn(self.prompt, converse.QUESTION_TOKENS), self._turn(self.answer.text, limit)
        for place in range(answered, 2 * (self._generate.turns - 1)):
            if place % 2 == 0:
                frame = self._follow_up
                piece = Piece(frame.size + talk.turns, frame.bound + talk.bound, frame.limit, question)
            else:
                piece = Piece(talk.system + talk.turns, talk.bound, limit, answer)
            yield piece
            talk = talk.more(piece.output.text, piece.limit)

    def mark(self) -> Piece:
        """The request that marks a whole chat; its bound lacks the prompt's."""
        rubric = judge.Rubric(self._config)
        assumed = estimate_tokens(json.dumps(dict.fromkeys(rubric.points, True))) + judge.WHY_TOKENS
        return self._reading("judge", rubric.request(BLANK), assumed)

    def reason(self) -> Piece:
        """The request for the reasoning behind an answer; its bound lacks the prompt's."""
        return self._reading("rationale", Rationales(self._config).request(BLANK), self.answer.text)

    def _reading(self, name: str, blank: TeacherRequest, assumed: float) -> Piece:
        frame, talk = self._frame(blank), self.whole()
        output = self.output(name, frame.limit, assumed)
        size = frame.size + talk.system + talk.turns
        return Piece(size, frame.bound + talk.bound, frame.limit, output)

    @cached_property
    def _follow_up(self) -> Piece:
        request = converse.Conversations(self._config).next_request(BLANK, ())
        assert request is not None, "a chat of several turns goes on after its first answer"
        return self._frame(request)

    def _turn(self, assumed: float, limit: int) -> Output:
        return self.output("converse", limit, assumed)

    def _frame(self, blank: TeacherRequest) -> Piece:
        """What stands around a chat."""
        limit = blank.body["generationConfig"]["maxOutputTokens"]
        return Piece(blank.input_tokens, len(blank.canonical_body), limit, Output(0.0))

    def _history(self, name: str) -> Output | None:
        """What a step's answers were like in this ledger; None where they are too few."""
        if name not in self._known:
            model = self._prices.model(name)
            own = name in OWN
            outputs = answers(self._ledger, self._config) if own else self._ledger.outputs(model, name, HISTORY)
            enough = len(outputs) >= ENOUGH
            text, thinking = zip(*outputs, strict=True) if enough else ((), ())
            self._known[name] = Output(fmean(text), fmean(thinking)) if enough else None
        return self._known[name]


BLANK = Sample(
    id="-",
    messages=(
        Message(role="system", content=""),
        Message(role="user", content=""),
        Message(role="assistant", content=""),
    ),
    role="-",
    prompt_id="-",
    sample=0,
    model="-",
    finish_reason=converse.WHOLE,
    usage=Usage(),
    cost_usd=Decimal(0),
    prompt_sha="-",
    created_at=datetime.fromtimestamp(0, UTC),
)
"""A chat without words: the request about it is what surrounds one."""
