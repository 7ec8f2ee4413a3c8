"""An OpenAI-compatible server as the teacher, from the config to the ledger: potstill's own server plays it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import uvicorn

from potstill.config import Config, Secrets, ServeConfig, resolve
from potstill.errors import TeacherError, UnknownModelError, UsageError
from potstill.records import Message
from potstill.serve.app import create_app
from potstill.serve.server import listen, url_of
from potstill.student.scripted import ScriptedStudent
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.opening import open_teacher
from potstill.workspace import Workspace

QUESTION = "What is a potstill?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ScriptedStudent]]:
    """Potstill's server with a scripted student whose model is `distiller`; no key is needed."""
    student = ScriptedStudent(lambda query: f"You asked: {query.messages[-1].content}", roles=("distiller",))
    listener = listen("127.0.0.1", 0)
    log = tmp_path_factory.mktemp("served") / "serve.jsonl"
    app = create_app(student, ServeConfig(), log_file=log)
    running = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(running.serve([listener])))
    thread.start()
    yield f"{url_of(listener)}/v1", student
    running.should_exit = True
    thread.join()
    listener.close()


def config_of(url: str, *more: str, model: str = "distiller") -> Config:
    """The config of such a teacher."""
    settings = ["teacher.provider=openai", f"teacher.base_url={url}", f"teacher.model={model}", "teacher.rpm=null"]
    return resolve(settings=[*settings, *more], environ={}).config


def asked(config: Config) -> TeacherRequest:
    """A question with a system prompt."""
    turns = [Message(role="system", content="Be short."), Message(role="user", content=QUESTION)]
    return build_request(config.teacher, turns, temperature=0.5, max_output_tokens=50)


async def test_a_local_server_costs_what_the_config_says(server: tuple[str, ScriptedStudent], tmp_path: Path) -> None:
    """An explicit price of zero is kept as such, or a price of one's own is billed exactly; asked twice, paid once."""
    url, student = server
    for price, usd in (("0", Decimal(0)), ("2", Decimal("0.000024"))):
        before = len(student.asked)
        config = config_of(
            url, f"prices.overrides={{distiller: {{input: {price}, output: {price}}}}}", "budget.max_usd=1"
        )
        workspace = Workspace(tmp_path / price)
        async with open_teacher(config, Secrets(), workspace, command="generate") as teacher:
            first = await teacher.ask(asked(config))
            again = await teacher.ask(asked(config))
        assert (first.text, first.finish_reason, first.model) == (f"You asked: {QUESTION}", "STOP", "distiller")
        assert (first.usage.input_tokens, first.usage.output_tokens) == (6, 6)
        assert (first.cost_usd, first.reused, again.reused) == (usd, False, True)
        assert len(student.asked) == before + 1


async def test_a_model_without_a_price_is_refused_before_anything_is_sent(
    server: tuple[str, ScriptedStudent], tmp_path: Path
) -> None:
    """An unknown price is never zero; the hint says where to set one."""
    url, student = server
    before = len(student.asked)
    config = config_of(url)
    with pytest.raises(UnknownModelError, match="distiller") as refused:
        async with open_teacher(config, Secrets(), Workspace(tmp_path), command="generate"):
            pass
    assert "prices.overrides" in str(refused.value.hint)
    assert len(student.asked) == before


async def test_a_model_that_the_server_lacks_ends_the_run(server: tuple[str, ScriptedStudent], tmp_path: Path) -> None:
    """A 404 names the model, and a parameter that the server refuses fails that request only."""
    url, _ = server
    free = "prices.overrides={nobody: {input: 0, output: 0}, distiller: {input: 0, output: 0}}"
    missing = config_of(url, free, model="nobody")
    async with open_teacher(missing, Secrets(), Workspace(tmp_path / "a"), command="generate") as teacher:
        with pytest.raises(UsageError, match="nobody"):
            await teacher.ask(asked(missing))
    config = config_of(url, free)
    hot = [Message(role="user", content="Q")]
    refused = build_request(config.teacher, hot, temperature=9.0, max_output_tokens=5)
    async with open_teacher(config, Secrets(), Workspace(tmp_path / "b"), command="generate") as teacher:
        with pytest.raises(TeacherError):
            await teacher.ask(refused)
        assert (await teacher.ask(asked(config))).text
