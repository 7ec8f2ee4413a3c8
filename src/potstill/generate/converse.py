"""Chats of several questions: the teacher plays the user, then answers. Every call is in the ledger.

The first question and answer are the plan's own, so that going from one turn to three pays for the two new ones only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile

from potstill.config import Config
from potstill.generate.judge import Lookup, conversation
from potstill.prompts import fill, load_template
from potstill.records import Message, Sample, content_id
from potstill.teacher.calls import Answer, Asks, TeacherRequest, answer_request, build_request

QUESTION_TOKENS = 256
"""Limit of one question of the played user, in tokens."""
WHOLE = "STOP"


class Conversations:
    """How a chat goes on. Pure but for the template's file."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._template = load_template("follow-up", config.language)

    def next_request(self, sample: Sample, answers: Sequence[Answer]) -> TeacherRequest | None:
        """What a chat lacks, after the answers that its further turns have had so far; None where it is done.

        Answers are questions of the played user and the teacher's replies in turn. One that is cut off or empty ends it.
        """
        if not all(_whole(answer) for answer in answers) or sample.finish_reason != WHOLE:
            return None
        if len(answers) >= 2 * (self._config.generate.turns - 1):
            return None
        messages = (*sample.messages, *_turns(answers))
        if len(answers) % 2 == 0:
            return self._question(messages, sample)
        return answer_request(self._config, messages, sample=sample.sample, role=sample.role)

    async def extend(self, sample: Sample, teacher: Asks) -> None:
        """Ask for what a chat lacks; raises what the teacher raises."""
        answers: list[Answer] = []
        while (request := self.next_request(sample, answers)) is not None:
            answers.append(await teacher.ask(request))

    def extended(self, sample: Sample, stored: Lookup) -> Sample:
        """A sample with all further turns that the ledger holds whole."""
        answers: list[Answer] = []
        while (request := self.next_request(sample, answers)) is not None:
            answer = stored(request)
            if answer is None:
                break
            answers.append(answer)
        return _longer(sample, answers)

    def _question(self, messages: tuple[Message, ...], sample: Sample) -> TeacherRequest:
        chat = conversation([message for message in messages if message.role != "system"])
        prompt = fill(self._template, {"conversation": chat}, origin="template follow-up")
        return build_request(
            self._config.teacher,
            (Message(role="user", content=prompt),),
            temperature=self._config.generate.temperature_of(sample.sample),
            max_output_tokens=QUESTION_TOKENS,
            sample=sample.sample,
            role=sample.role,
        )


def _longer(sample: Sample, answers: Sequence[Answer]) -> Sample:
    """The sample with the turns that are whole; what was paid for a turn that is not counts all the same."""
    whole = list(takewhile(_whole, answers))
    turns = whole[: len(whole) // 2 * 2]
    if not answers:
        return sample
    return sample.model_copy(
        update={
            "id": content_id({"keys": [sample.id, *(answer.key for answer in turns)]}) if turns else sample.id,
            "messages": (*sample.messages, *_turns(turns)),
            "usage": sum((answer.usage for answer in answers), sample.usage),
            "cost_usd": sum((answer.cost_usd for answer in answers), sample.cost_usd),
            "created_at": turns[-1].answered_at if turns else sample.created_at,
        }
    )


def _turns(answers: Sequence[Answer]) -> Iterator[Message]:
    for place, answer in enumerate(answers):
        yield Message(role="assistant" if place % 2 else "user", content=answer.text.strip())


def _whole(answer: Answer) -> bool:
    return answer.finish_reason == WHOLE and bool(answer.text.strip())
