"""What the student was never taught: measured at distill time, told by the router, and said in the trace."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.routing import PricedTeacher, RoleStudent, config, failing, routing, verdict
from tests.unit.test_verdict import judged

from potstill.config import Config, with_values
from potstill.distill.asking import Judged
from potstill.distill.router import Nearness, router_rule
from potstill.errors import InputError, TeacherError
from potstill.files import write_atomic
from potstill.infer.encoder import HashingEncoder
from potstill.infer.store import EntryStore
from potstill.records import Familiar, Message, RouterRule
from potstill.student.familiar import known_questions, nearness, read_known, write_known
from potstill.workspace import Workspace

TAUGHT = ("How much memory does a model need?", "How hot may a card get?", "What does a LoRA adapter do?")
NEAR = "How much memory do models need?"
FOREIGN = "Who painted the ceiling of the Sistine Chapel?"
LEAST = 0.5


def asked(value: float, logprob: float, number: int) -> Judged:
    """An answer to a question of its own."""
    item = judged(value, logprob, f"p{number}")
    turns = (Message(role="user", content=f"question {number}"), item.sample.messages[-1])
    return Judged(item.sample.model_copy(update={"messages": turns}), item.answer, value, exact=False)


def wise(folder: Path, alone: float | None = -0.5, **familiar: Any) -> Workspace:
    """A workspace whose student was taught three questions, and answers by itself what is near them."""
    workspace = Workspace(folder)
    files = workspace.student("demo")
    encoder = HashingEncoder()
    known = known_questions(TAUGHT, encoder)
    assert known is not None
    write_known(files.questions, known)
    told = Familiar(**{"encoder": encoder.id, "least_cosine": LEAST, "questions": 3, **familiar})
    bare = RouterRule(threshold=alone, coverage=0.5, agreement_low=0.9, reason="test")
    write_atomic(files.verdict, verdict(-0.5, familiar=told, alone=bare).model_dump_json())
    return workspace


def student_config(**cache: Any) -> Config:
    """The tests' config for that student, without random escalation."""
    return with_values(config(escalate_share=0.0), distill={"name": "demo"}, cache=cache)


def plain() -> PricedTeacher:
    """A teacher that always says the same."""
    return PricedTeacher(lambda _: "Gemini says so")


def test_stored_questions_are_read_as_they_were_measured(tmp_path: Path) -> None:
    """What a held-out question was measured against is what the router will measure against, to the last bit."""
    encoder = HashingEncoder()
    known = known_questions([*TAUGHT, *TAUGHT], encoder)
    assert known is not None
    assert known.vectors.shape == (3, encoder.dims)
    write_known(tmp_path / "q.safetensors", known)
    read = read_known(tmp_path / "q.safetensors")
    assert read is not None
    assert (read.encoder, read.vectors.tolist()) == (encoder.id, known.vectors.tolist())
    found = nearness([*TAUGHT, NEAR, FOREIGN, " "], read, encoder)
    assert found[TAUGHT[0]] == pytest.approx(1.0, abs=1e-3)
    near, far = found[NEAR], found[FOREIGN]
    assert near is not None
    assert far is not None
    assert far < LEAST < near
    assert found[" "] is None
    assert known_questions([" ", "  ", "word"], encoder) is None, "an encoder that reads a third of them is no measure"
    (tmp_path / "q.safetensors").write_text("no tensors", encoding="utf-8")
    with pytest.raises(InputError, match="holds no training questions"):
        read_known(tmp_path / "q.safetensors")


def test_rule_leaves_foreign_questions_to_the_teacher() -> None:
    """Sure and wrong answers spoil a rule by log-probability; where they lie far from the training data, it holds again."""
    rows = [asked(1.0, -0.1 - number / 1000, number) for number in range(190)]
    rows += [asked(0.0, -0.01, number) for number in range(190, 200)]
    cosines = {item.question: 0.9 if place < 190 else 0.1 for place, item in enumerate(rows)}
    rule = router_rule(rows, 0.03, near=Nearness("encoder", 7, cosines))
    assert rule.alone is not None
    assert rule.alone.threshold is None
    assert rule.alone == router_rule(rows, 0.03)
    assert rule.familiar == Familiar(encoder="encoder", least_cosine=0.9, questions=7)
    assert rule.threshold is not None
    assert rule.coverage == pytest.approx(0.95)
    assert "below cosine 0.90" in rule.reason


def test_a_question_that_cannot_be_read_is_never_familiar() -> None:
    """Held-out questions that the encoder cannot read do not count for the rule; where it reads none, there is no limit."""
    rows = [asked(1.0, -0.1, number) for number in range(100)]
    half = {item.question: None if place % 2 else 0.8 for place, item in enumerate(rows)}
    assert router_rule(rows, 0.2, near=Nearness("encoder", 7, half)).coverage == 0.5
    unread = dict.fromkeys(half)
    assert router_rule(rows, 0.2, near=Nearness("encoder", 7, unread)) == router_rule(rows, 0.2)


async def test_near_questions_are_the_students_and_foreign_ones_geminis(tmp_path: Path) -> None:
    """A sure student answers what it was taught; about anything else it is not even asked, and both traces say why."""
    wise(tmp_path)
    student, teacher = RoleStudent(), plain()
    async with routing(tmp_path, teacher, student, student_config()) as router:
        near = (await router.answer(NEAR)).trace
        foreign = (await router.answer(FOREIGN)).trace
        again = (await router.answer(NEAR)).trace
    assert (near.route, foreign.route, again.route) == ("student", "teacher", "exact")
    assert "nearest training question at cosine 0." in near.reason
    assert "foreign to the student: nearest training question at cosine" in foreign.reason
    assert near.taught_cosine is not None
    assert foreign.taught_cosine is not None
    assert foreign.taught_cosine < LEAST <= near.taught_cosine
    assert len(student.batches) == 1
    assert foreign.cost_usd == foreign.baseline_usd == Decimal("0.01"), "Gemini alone, no longer prompt"


async def test_foreign_questions_get_the_student_when_gemini_is_out(tmp_path: Path) -> None:
    """In an outage even a foreign question has an answer: the student's, unverified and not stored."""
    wise(tmp_path)
    teacher = PricedTeacher(failing(TeacherError("down", reason="http 503")))
    async with routing(tmp_path, teacher, RoleStudent(), student_config()) as router:
        found = (await router.answer(FOREIGN)).trace
    assert (found.route, found.entry_id) == ("student", None)
    assert "unverified" in found.reason


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("missing", "questions.safetensors is missing"),
        ("broken", "holds no training questions"),
        ("encoder", "cache.encoder is not"),
        ("folder", "the encoder gave no vector"),
    ],
)
async def test_without_the_encoder_log_probability_decides_and_says_so(tmp_path: Path, spoil: str, why: str) -> None:
    """Where nearness cannot be told, the rule without it is used, its threshold too; nothing of that is cached."""
    workspace = wise(tmp_path)
    chosen = student_config()
    file = workspace.student("demo").questions
    if spoil == "missing":
        file.unlink()
    elif spoil == "broken":
        file.write_bytes(b"no tensors")
    elif spoil == "encoder":
        other = HashingEncoder(64)
        known = known_questions(TAUGHT, other)
        assert known is not None
        write_known(file, known)
        wise_again = verdict(
            -0.5,
            familiar=Familiar(encoder=other.id, least_cosine=LEAST, questions=3),
            alone=RouterRule(threshold=-0.5, coverage=0.5, agreement_low=0.9, reason="test"),
        )
        write_atomic(workspace.student("demo").verdict, wise_again.model_dump_json())
    else:
        empty = tmp_path / "no-encoder"
        empty.mkdir()
        chosen = student_config(encoder=str(empty))
    async with routing(tmp_path, plain(), RoleStudent(), chosen) as router:
        found = (await router.answer(FOREIGN)).trace
    assert found.route == "student"
    assert "by log-probability alone" in found.reason
    assert why in found.reason
    assert found.entry_id is None


async def test_index_that_cannot_be_used_makes_no_question_foreign(tmp_path: Path) -> None:
    """A folder in which no index can be made costs semantic hits; what the student was taught, it answers all the same."""
    workspace = wise(tmp_path)
    workspace.cache_index.parent.mkdir(parents=True, exist_ok=True)
    workspace.cache_index.write_text("in the way", encoding="utf-8")
    async with routing(tmp_path, plain(), RoleStudent(), student_config()) as router:
        first = (await router.answer(NEAR)).trace
        second = (await router.answer(TAUGHT[2])).trace
    assert "its index cannot be used" in first.reason
    assert "its index failed a moment ago" in second.reason
    assert (first.route, second.route) == ("student", "student")


async def test_without_a_rule_for_log_probability_alone_gemini_answers(tmp_path: Path) -> None:
    """Where only the rule with nearness has a threshold, and nearness cannot be told, the student does not stand alone."""
    wise(tmp_path, alone=None).student("demo").questions.unlink()
    async with routing(tmp_path, plain(), RoleStudent(), student_config()) as router:
        assert (await router.answer(NEAR)).trace.route == "merged"


async def test_a_chat_is_measured_by_all_that_was_asked(tmp_path: Path) -> None:
    """A turn of a chat is read with the turns before it, as the held-out questions were."""
    wise(tmp_path)
    history = [Message(role="user", content=FOREIGN), Message(role="assistant", content="Michelangelo.")]
    async with routing(tmp_path, plain(), RoleStudent(), student_config()) as router:
        found = (await router.answer(NEAR, history=history)).trace
        alone = (await router.answer(NEAR, read_cache=False)).trace
    assert found.taught_cosine is not None
    assert alone.taught_cosine is not None
    assert found.taught_cosine < alone.taught_cosine


async def test_busy_encoder_is_waited_for(tmp_path: Path) -> None:
    """The cache goes on without a vector that is late; the student's rule waits for it, and it is stored with the answer."""
    wise(tmp_path)

    class Late(HashingEncoder):
        def unreadable(self, text: str) -> str | None:
            """Take longer than the cache waits."""
            time.sleep(0.2)
            return super().unreadable(text)

    chosen = with_values(student_config(), cache={"deadline_s": 0.01})
    async with routing(tmp_path, plain(), RoleStudent(), chosen) as router:
        router._layers._cache._encoder.load = Late
        found = (await router.answer(FOREIGN)).trace
    with EntryStore(Workspace(tmp_path).cache_entries) as store:
        assert len(store.numbers(HashingEncoder().id)) == 1
    assert found.route == "teacher"
    assert "no vector within 0.01 s" in found.reason
    assert "foreign to the student" in found.reason
