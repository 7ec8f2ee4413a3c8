"""Answers marked by a rubric of yes-or-no points; the marks stand in the ledger and are never paid for twice.

Points that are met or not agree better between judges than a scale does, and say what is wrong. The rubric is a template
(`judge.rubric`): its lines `- name: what it asks for` are the points.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from potstill.config import Config, with_values
from potstill.errors import InputError
from potstill.generate.forms import read_json
from potstill.generate.sift import Judged, Rejection, Score
from potstill.prompts import fill, load_template
from potstill.records import Message, Sample
from potstill.teacher.calls import Answer, TeacherRequest, build_request

POINT = re.compile(r"^- ([a-z][a-z0-9_]*)\s*[:：]", re.MULTILINE)
WHY = "why"
MAX_OUTPUT_TOKENS = 256
"""Limit of one mark, in tokens."""
WHY_TOKENS = 50
"""The sentence that a mark ends with, as long as it is taken to be before there are any."""

Lookup = Callable[[TeacherRequest], Answer | None]
"""The stored answer to a request, if there is one."""


class Rubric:
    """The requests that mark samples, and how to read the answers. Pure."""

    def __init__(self, config: Config) -> None:
        """Load the rubric of a config; raises InputError where it has no points."""
        judge = config.generate.judge
        self._template = load_template(judge.rubric, config.language)
        self._teacher = judging(config).teacher
        self.points = tuple(dict.fromkeys(POINT.findall(self._template)))
        if not self.points:
            message = f"rubric {judge.rubric}: no points in it"
            raise InputError(message, hint="write each as a line `- name: what it asks for`")
        properties: dict[str, Any] = {point: {"type": "boolean"} for point in self.points}
        properties[WHY] = {"type": "string"}
        self._schema = {"type": "object", "properties": properties, "required": list(properties)}

    def request(self, sample: Sample) -> TeacherRequest:
        """The request that marks a sample's last answer."""
        *chat, answer = sample.messages
        system = "\n".join(message.content for message in chat if message.role == "system")
        asked = [message for message in chat if message.role != "system"]
        values = {"system": system, "question": conversation(asked), "answer": answer.content}
        return build_request(
            self._teacher,
            (Message(role="user", content=fill(self._template, values, origin="rubric")),),
            temperature=0.0,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            role=sample.role,
            schema=self._schema,
        )

    def read(self, text: str) -> Score | Rejection:
        """The share of the points that an answer meets; a Rejection where the mark is not of the asked form."""
        value = read_json(text)
        marks = [value.get(point) for point in self.points] if isinstance(value, dict) else []
        if not marks or not all(isinstance(mark, bool) for mark in marks):
            return Rejection("not judged", "the judge's answer is not of the asked form")
        missed = [point for point, mark in zip(self.points, marks, strict=True) if not mark]
        why = " ".join(str(value.get(WHY, "")).split())
        return Score(1 - len(missed) / len(marks), f"{', '.join(missed)}: {why}" if missed else why)

    def judged(self, stored: Lookup) -> Judged:
        """What the stored marks say of a sample."""

        def judged(sample: Sample) -> Score | Rejection:
            answer = stored(self.request(sample))
            return Rejection("not judged", "no mark in the ledger yet") if answer is None else self.read(answer.text)

        return judged


def judging(config: Config) -> Config:
    """The config with the model that judges."""
    model = config.generate.judge.model
    return config if model is None else with_values(config, teacher={"model": model})


def conversation(messages: list[Message]) -> str:
    """A chat as text: a single question as it is, several turns with the speakers' names."""
    if len(messages) == 1:
        return messages[0].content
    names = {"user": "User", "assistant": "Assistant"}
    return "\n\n".join(f"{names[message.role]}: {message.content}" for message in messages)
