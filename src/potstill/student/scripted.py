"""A shipped fake: a student that answers by a function, for tests and for trying out the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from potstill.errors import InputError
from potstill.records import content_id
from potstill.student.answers import ChosenToken, Piece, StudentAnswer, StudentQuery
from potstill.student.lineup import Lineup

Script = Callable[[StudentQuery], str]


class ScriptedStudent:
    """Implements `answers.Continuous` without a model. Tokens are words; every answer has the given log-probability.

    `asked` holds the queries in their order. An exception that the script raises is passed on.
    """

    def __init__(
        self, script: Script, *, roles: tuple[str, ...], name: str = "scripted", mean_logprob: float | None = 0.0
    ) -> None:
        self.name = name
        self.roles = roles
        self.fingerprint = content_id({"scripted": name, "roles": list(roles)})
        self.prefix_hits = 0
        self.asked: list[StudentQuery] = []
        self.mean_logprob = mean_logprob
        self._script = script

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries by the script; raises InputError for an unknown role."""
        return [piece.answer for piece in self.stream(queries) if piece.answer is not None]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer word by word, the queries one after the other."""
        for index, query in enumerate(queries):
            engine = self.open(1)
            engine.add(engine.prepare(query))
            while engine.running or engine.waiting:
                yield from (piece.model_copy(update={"index": index}) for piece in engine.step())

    def open(self, slots: int) -> ScriptedEngine:
        """An engine that says one word of each running query a step."""
        return ScriptedEngine(self, slots)

    def say(self, query: StudentQuery) -> str:
        """What the script says; keeps the query."""
        self.asked.append(query)
        return self._script(query)


@dataclass
class ScriptedRow:
    """One query, its words from its first step on."""

    query: StudentQuery
    prompt_tokens: int
    room: int = 1_000_000
    number: int = -1
    words: list[str] | None = None
    said: int = 0


class ScriptedEngine(Lineup[ScriptedRow]):
    """Implements `answers.Engine`."""

    def __init__(self, student: ScriptedStudent, slots: int) -> None:
        super().__init__(slots)
        self._student = student

    def prepare(self, query: StudentQuery) -> ScriptedRow:
        """Check a query; raises InputError for an unknown role."""
        if query.role not in self._student.roles:
            message = f"the student {self._student.name!r} has no role {query.role!r}"
            raise InputError(message, hint=f"it has {', '.join(self._student.roles)}")
        texts = [query.text or "", *(message.content for message in query.messages)]
        return ScriptedRow(query, sum(len(text.split()) for text in texts))

    def cancel(self, number: int) -> None:
        """Drop a query."""
        self._rows = [row for row in self._rows if row.number != number]
        self._drop(number)

    def step(self) -> list[Piece]:
        """One word of each running query."""
        self._rows += self._next()
        pieces = [self._word(row) for row in self._rows]
        done = {piece.index for piece in pieces if piece.answer is not None}
        self._rows = [row for row in self._rows if row.number not in done]
        return pieces

    def _word(self, row: ScriptedRow) -> Piece:
        if row.words is None:
            row.words = self._student.say(row.query).split(" ")
        kept = row.words[: row.query.max_new_tokens]
        text = kept[row.said] if row.said == 0 else f" {kept[row.said]}"
        row.said += 1
        logprob = self._student.mean_logprob or 0.0
        wanted = row.query.top_logprobs
        tokens = () if wanted is None else (ChosenToken(text, text.encode(), logprob, _tops(text, logprob, wanted)),)
        if row.said < len(kept):
            return Piece(index=row.number, text=text, tokens=tokens)
        answer = StudentAnswer(
            role=row.query.role,
            text=" ".join(kept),
            finish_reason="stop" if len(kept) == len(row.words) else "length",
            prompt_tokens=row.prompt_tokens,
            completion_tokens=len(kept),
            mean_logprob=self._student.mean_logprob,
            min_logprob=self._student.mean_logprob,
        )
        return Piece(index=row.number, text=text, tokens=tokens, answer=answer)


def _tops(text: str, logprob: float, wanted: int) -> tuple[ChosenToken, ...]:
    return (ChosenToken(text, text.encode(), logprob),) if wanted else ()
