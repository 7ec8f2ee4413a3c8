"""Marks, chats and answers by a schema: decided from what the ledger holds, and paid for within their budgets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.samples import line_of

from potstill.config import Config, with_values
from potstill.errors import BudgetError, InputError, PartialError, TeacherError
from potstill.generate.converse import Conversations
from potstill.generate.forms import read_texts, schema_check
from potstill.generate.judge import Rubric
from potstill.generate.refine import each
from potstill.generate.sift import Rejection, Score
from potstill.teacher.calls import Answer, TeacherRequest, build_request
from potstill.teacher.paid import free_answer
from potstill.teacher.scripted import ScriptedTeacher

SAMPLE = line_of(
    ("system", "You are an engineer."),
    ("user", "How hot may a card be?"),
    ("assistant", "Eighty degrees."),
    role="hardware-expert",
)
MARK = {"right": True, "on_topic": True, "complete": False, "clear": True, "why": "no source"}


def text_of(request: TeacherRequest) -> str:
    """The last user turn of a request."""
    return request.body["contents"][-1]["parts"][0]["text"]


def test_a_mark_is_the_share_of_points_met() -> None:
    """The answer is read with its question and instructions; a mark of another form is no mark."""
    rubric = Rubric(Config())
    request = rubric.request(SAMPLE)
    assert all(
        part in text_of(request) for part in ("How hot may a card be?", "Eighty degrees.", "You are an engineer.")
    )
    assert rubric.points == ("right", "on_topic", "complete", "clear")
    assert rubric.read(json.dumps(MARK)) == Score(0.75, "complete: no source")
    for broken in ("", "[]", "{}", '{"right": "yes"}', json.dumps({**MARK, "clear": 1})):
        assert isinstance(rubric.read(broken), Rejection)
    assert isinstance(rubric.judged(lambda _: None)(SAMPLE), Rejection)
    assert rubric.judged(lambda asked: free_answer(asked, json.dumps(MARK)))(SAMPLE) == Score(
        0.75, "complete: no source"
    )


def test_a_rubric_of_ones_own(tmp_path: Path) -> None:
    """A user's template names its own points; one without any is refused; another model has marks of its own."""
    path = tmp_path / "mine.txt"
    path.write_text("- short: at most ten words.\n{{ system }} {{ question }} {{ answer }}\n")
    mine = with_values(Config(), generate={"judge": {"rubric": str(path), "model": "gemini-2.5-pro"}})
    assert Rubric(mine).points == ("short",)
    assert Rubric(mine).request(SAMPLE).model == "gemini-2.5-pro"
    path.write_text("{{ system }} {{ question }} {{ answer }}\n")
    with pytest.raises(InputError, match="no points"):
        Rubric(mine)


async def test_chats_go_on_and_are_replayed() -> None:
    """Three turns: the teacher plays the user twice and answers twice; the replay has all turns, usage and cost."""
    conversations = Conversations(with_values(Config(), generate={"turns": 3}))
    given_answers: dict[str, Answer] = {}

    def script(request: TeacherRequest) -> str:
        text = (
            f"And then {len(given_answers)}?" if "play the user" in text_of(request) else f"Then {len(given_answers)}."
        )
        given_answers[request.key] = free_answer(request, text)
        return text

    await conversations.extend(SAMPLE, ScriptedTeacher(script))
    assert len(given_answers) == 4
    whole = conversations.extended(SAMPLE, lambda request: given_answers.get(request.key))
    assert [message.role for message in whole.messages] == ["system", *["user", "assistant"] * 3]
    assert [message.content for message in whole.messages[3:]] == ["And then 0?", "Then 1.", "And then 2?", "Then 3."]
    assert whole.id != SAMPLE.id
    given_answers.pop(list(given_answers)[-1])
    half = conversations.extended(SAMPLE, lambda request: given_answers.get(request.key))
    assert len(half.messages) == 5
    assert conversations.extended(SAMPLE, lambda _: None) == SAMPLE


def test_a_chat_ends_where_an_answer_is_cut_off() -> None:
    """Nothing is asked after an answer that is not whole, nor in a run of single questions."""
    three = Conversations(with_values(Config(), generate={"turns": 3}))
    cut = SAMPLE.model_copy(update={"finish_reason": "MAX_TOKENS"})
    assert three.next_request(cut, []) is None
    question = three.next_request(SAMPLE, [])
    assert question is not None
    assert three.next_request(SAMPLE, [free_answer(question, "And?", finish_reason="SAFETY")]) is None
    assert Conversations(Config()).next_request(SAMPLE, []) is None


async def test_failures_are_counted_and_a_stop_ends_all() -> None:
    """Some items that fail make a PartialError and the rest goes on; an error of the run stops what has not begun."""
    done = []

    async def work(number: int) -> None:
        if number == 3:
            message = "gone"
            raise TeacherError(message, reason="lost")
        if number == 7:
            message = "no money"
            raise BudgetError(message)
        done.append(number)

    partly = await each(range(6), work, workers=2, noun="thing", fate="failed")
    assert isinstance(partly, PartialError)
    assert partly.message.startswith("1 thing failed: ")
    assert sorted(done) == [0, 1, 2, 4, 5]
    assert isinstance(await each(range(7, 100), work, workers=1, noun="thing", fate="failed"), BudgetError)
    assert await each([], work, workers=3, noun="thing", fate="failed") is None


def test_answers_by_a_schema() -> None:
    """What is no JSON, or not of the schema, is rejected with the place; what follows it passes."""
    check = schema_check({"type": "object", "properties": {"watts": {"type": "integer"}}, "required": ["watts"]})
    assert check('{"watts": 300}') is None
    assert check("300 W") == Rejection("not JSON", "Extra data (character 4)")
    assert check('{"watts": "many"}') == Rejection("schema", "$.watts: 'many' is not of type 'integer'")
    assert check("[" * 100_000).reason == "not JSON"
    assert check('{"watts": ' + "1" * 5000 + "}") == Rejection("not JSON", "a number of too many digits (character 0)")
    assert read_texts('{"questions": ' + "1" * 5000) == ()


@given(st.text())
def test_any_text_can_be_read_for_questions(text: str) -> None:
    """No answer breaks the reading; a list of texts is read as it stands."""
    assert all(isinstance(found, str) for found in read_texts(text))
    assert read_texts(json.dumps({"questions": [text, 3]})) == (text.strip(),)


def test_temperatures_in_turn() -> None:
    """Samples take the temperatures one after the other; each is other work."""
    config = with_values(Config(), generate={"temperatures": (0.2, 0.9)})
    assert [config.generate.temperature_of(sample) for sample in range(4)] == [0.2, 0.9, 0.2, 0.9]
    assert Config().generate.temperature_of(5) == Config().generate.temperature
    keys = {
        build_request(config.teacher, SAMPLE.messages[:2], temperature=warmth, max_output_tokens=9).key
        for warmth in (0.2, 0.9)
    }
    assert len(keys) == 2
