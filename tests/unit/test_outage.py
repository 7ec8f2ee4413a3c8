"""When a run that finds no way to the teacher is over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from potstill.config import Config, Secrets, with_values
from potstill.errors import MachineError, PotstillError, TeacherError
from potstill.generate.ask import OUTAGE_S, Outage
from potstill.generate.grow import Ask, settled
from potstill.generate.refine import Place, each
from potstill.ledger import read_attempts
from potstill.records import Message
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.workspace import Workspace

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

LOST = "no connection: ClientConnectorError"


def test_a_teacher_that_was_never_heard_ends_a_run_after_a_round() -> None:
    """As soon as each worker has failed, and not before three requests have."""
    for workers, most in ((1, 3), (16, 16)):
        outage = Outage()
        for number in range(1, most + 1):
            outage.failed(LOST, 0.0)
            assert outage.ends_run(workers, 0.0) == (number == most)


def test_an_outage_in_the_middle_of_a_run_is_sat_out_for_a_while() -> None:
    """A network that comes back costs the cells that failed; one that stays away ends the run after ten minutes."""
    outage = Outage()
    outage.answered()
    for second in range(100):
        outage.failed(LOST, float(second))
    assert not outage.ends_run(4, 99.0)
    assert outage.ends_run(4, OUTAGE_S)
    outage.answered()
    outage.failed(LOST, OUTAGE_S + 1)
    assert not outage.ends_run(1, OUTAGE_S + 2)


def test_a_refusal_is_no_outage() -> None:
    """Whoever refuses a request was reached, however many are refused."""
    outage = Outage()
    for _ in range(50):
        outage.failed("http 400", 0.0)
    assert not outage.ends_run(1, 1e9)


def nowhere(folder: Path) -> tuple[Config, Place, list[TeacherRequest]]:
    """A config whose teacher listens nowhere, asked four at once, and forty requests."""
    config = with_values(
        Config(), teacher={"base_url": "http://127.0.0.1:9", "max_attempts": 1, "max_concurrency": 4, "rpm": None}
    )
    requests = [
        build_request(
            config.teacher, [Message(role="user", content=f"{n}?")], temperature=1, max_output_tokens=9, sample=0
        )
        for n in range(40)
    ]
    secrets = Secrets(teacher_key=SecretStr("a-key"))
    return config, Place(config, secrets, Workspace(folder), asyncio.Event()), requests


async def test_a_step_around_the_cells_ends_after_a_round_too(tmp_path: Path) -> None:
    """Each of the workers asks once, then the step ends with what a run out of reach ends with."""
    config, place, requests = nowhere(tmp_path)

    async with place.teacher(config, "judge") as teacher:

        async def ask(request: TeacherRequest) -> None:
            await teacher.ask(request)

        ended = await each(requests, ask, workers=4, noun="answer", fate="could not be marked")
    assert isinstance(ended, MachineError)
    assert "cannot be reached" in ended.message
    assert len(read_attempts(place.workspace.ledger)) <= 8
    assert place.outage.ends_run(4, 0.0)


async def test_a_round_of_growing_asks_no_more_once_the_teacher_is_out_of_reach(tmp_path: Path) -> None:
    """The requests of a round that have not begun by then are not sent."""
    config, place, requests = nowhere(tmp_path)
    async with place.teacher(config, "grow") as teacher:
        found = await settled([Ask(request, "evolve", (), 0) for request in requests], teacher, config)
    assert any(isinstance(error, MachineError) for error in found)
    assert all(isinstance(error, PotstillError) for error in found)
    assert len(read_attempts(place.workspace.ledger)) <= 8
    hints = {error.hint for error in found if isinstance(error, TeacherError)}
    assert hints == {"is the network up, and teacher.base_url right?"}
