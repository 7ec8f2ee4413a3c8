"""A shipped fake: a student that answers by a function, for tests and for trying out the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from potstill.errors import InputError
from potstill.records import content_id
from potstill.student.answers import Piece, StudentAnswer, StudentQuery

Script = Callable[[StudentQuery], str]


class ScriptedStudent:
    """Implements `answers.Student` without a model. Tokens are words; every answer has the given log-probability.

    `asked` holds the queries in their order. An exception that the script raises is passed on.
    """

    def __init__(
        self, script: Script, *, roles: tuple[str, ...], name: str = "scripted", mean_logprob: float | None = 0.0
    ) -> None:
        self.name = name
        self.roles = roles
        self.fingerprint = content_id({"scripted": name, "roles": list(roles)})
        self.asked: list[StudentQuery] = []
        self._script = script
        self._mean_logprob = mean_logprob

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Answer all queries by the script; raises InputError for an unknown role."""
        return [self._one(query) for query in queries]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Answer word by word, the queries one after the other."""
        for index, query in enumerate(queries):
            answer = self._one(query)
            words = answer.text.split(" ")
            for word in words[:-1]:
                yield Piece(index=index, text=word + " ")
            yield Piece(index=index, text=words[-1], answer=answer)

    def _one(self, query: StudentQuery) -> StudentAnswer:
        if query.role not in self.roles:
            message = f"the student {self.name!r} has no role {query.role!r}"
            raise InputError(message, hint=f"it has {', '.join(self.roles)}")
        self.asked.append(query)
        words = self._script(query).split(" ")
        kept = words[: query.max_new_tokens]
        return StudentAnswer(
            role=query.role,
            text=" ".join(kept),
            finish_reason="stop" if len(kept) == len(words) else "length",
            prompt_tokens=sum(len(message.content.split()) for message in query.messages),
            completion_tokens=len(kept),
            mean_logprob=self._mean_logprob,
            min_logprob=self._mean_logprob,
        )
