"""A running router follows calibration and verdict on disk, and nothing else."""

from __future__ import annotations

from pathlib import Path

from tests.routing import PARAPHRASE, QUESTION, PricedTeacher, RoleStudent, config, routing, verdict
from tests.unit.test_cache_rule import calibration

from potstill.config import with_values
from potstill.files import write_atomic
from potstill.infer.encoder import HashingEncoder
from potstill.workspace import Workspace

OTHER = "Which cable does a card need?"


def plain() -> PricedTeacher:
    """A teacher that always says the same."""
    return PricedTeacher(lambda _: "Gemini says so")


async def test_new_calibration_is_in_force_without_a_restart(tmp_path: Path) -> None:
    """A near question is a miss, then a hit once a calibration allows it; a broken file changes nothing, and is named."""
    file = Workspace(tmp_path).calibration
    loose = calibration(encoder=HashingEncoder().id).model_copy(update={"threshold": 0.6})
    async with routing(tmp_path, plain(), chosen=with_values(config(), cache={"threshold": None})) as router:
        await router.answer(QUESTION)
        before = (await router.answer("How much GPU memory do I want to run small models?")).trace
        write_atomic(file, loose.model_dump_json())
        after = (await router.answer(PARAPHRASE)).trace
        write_atomic(file, "{")
        broken = (await router.answer(OTHER)).trace
        again = (await router.answer(f"{PARAPHRASE} please")).trace
    assert (before.route, after.route, again.route) == ("teacher", "semantic", "semantic")
    assert "not calibrated" in before.reason
    assert "at most 4.0% wrong by calibration" in after.reason
    assert "not taken over" in broken.reason
    assert "not taken over" not in again.reason


async def test_new_verdict_is_in_force_unless_the_student_was_trained_anew(tmp_path: Path) -> None:
    """A verdict's threshold is followed; one on a student that this process has not loaded is not."""
    files = Workspace(tmp_path).student("student")
    async with routing(tmp_path, plain(), RoleStudent(), config(escalate_share=0.0)) as router:
        assert (await router.answer(QUESTION)).trace.route == "merged"
        write_atomic(files.verdict, verdict(-0.5).model_dump_json())
        assert (await router.answer(QUESTION)).trace.route == "student"
        write_atomic(files.manifest, "{}")
        write_atomic(files.verdict, verdict(0.0).model_dump_json() + "\n")
        assert (await router.answer(OTHER)).trace.route == "student"
        assert router.policy.threshold == -0.5
