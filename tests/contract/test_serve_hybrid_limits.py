"""The model `hybrid`, the async client, and what happens at the limits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient
from tests.contract.test_serve_openai import KEY, QUESTION, Running, Scripted

from potstill.config import ServeConfig, ServeLimits
from potstill.errors import BudgetError, KeyRefusedError, PotstillError, QuotaError
from potstill.records import Message, Trace
from potstill.serve.access import Keys, Rates
from potstill.serve.app import Parts, create_app
from potstill.serve.errors import ApiError

HEADERS = {"Authorization": f"Bearer {KEY}"}


class Router:
    """A router that repeats the question, or raises what it was given."""

    def __init__(self, error: PotstillError | None = None) -> None:
        self.error = error
        self.seen: list[tuple[str | None, int]] = []

    async def write(self, tell: Callable[[str], None]) -> None:
        """What it does while it writes for a stream."""
        tell("routed: ")

    async def answer(
        self,
        question: str,
        *,
        namespace: str | None = None,
        history: Sequence[Message] = (),
        read_cache: bool = True,
        store: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> SimpleNamespace:
        """Repeat the question."""
        self.wishes = (read_cache, store)
        if self.error:
            raise self.error
        self.seen.append((namespace, len(history)))
        if tell is not None:
            await self.write(tell)
        trace = Trace(
            id="t", at=datetime.now(UTC), query=question, namespace="x", route="student", reason="sure", cosine=None,
            mean_logprob=None, roles=(), model=None, entry_id=None, cost_usd=Decimal(0), baseline_usd=Decimal(0),
            latency_s=0,
        )  # fmt: skip
        return SimpleNamespace(text=f"routed: {question}", trace=trace)


def ask(router: Router, folder: Path, cache: str = "", **extra: object) -> httpx.Response:
    """One request to `hybrid`."""
    parts = Parts(keys=Keys((KEY,)), router=lambda _: lambda: nullcontext(router))
    app = create_app(Scripted(), ServeConfig(), log_file=folder / "log", parts=parts)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        body = {"model": "hybrid", "messages": QUESTION, **extra}
        return client.post("/v1/chat/completions", json=body, headers={**HEADERS, "x-potstill-cache": cache})


def test_hybrid_tells_its_route(tmp_path: Path) -> None:
    """The answer carries its route, and the tenant is a digest of the key, never the key."""
    router = Router()
    turns = [*QUESTION, {"role": "assistant", "content": "hi"}, *QUESTION]
    reply = ask(router, tmp_path, messages=turns).json()
    assert reply["choices"][0]["message"]["content"] == "routed: hello"
    assert reply["potstill"]["route"] == "student"
    ((namespace, turns_before),) = router.seen
    assert turns_before == 2
    assert KEY not in namespace
    assert "[DONE]" in ask(router, tmp_path, stream=True).text


@pytest.mark.parametrize(
    "extra", [{"temperature": 0}, {"n": 2}, {"messages": [{"role": "system", "content": "x"}, *QUESTION]}]
)
def test_hybrid_refuses_what_it_decides(tmp_path: Path, extra: dict[str, object]) -> None:
    """What the router's config decides is 400, not ignored."""
    assert ask(Router(), tmp_path, **extra).status_code == 400


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BudgetError("spent"), 429, "budget_exceeded"),
        (QuotaError("wait"), 429, "quota_exhausted"),
        (KeyRefusedError("no"), 502, "teacher_key"),
    ],
)
def test_hybrid_errors(tmp_path: Path, error: PotstillError, status: int, code: str) -> None:
    """Money, quota and key each have a status and a code of their own."""
    reply = ask(Router(error), tmp_path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Running]:
    """A server whose queue holds one request, and whose requests time out after a second."""
    running = Running(tmp_path, ServeLimits(max_batch=1, max_queue=1, timeout_s=1))
    yield running
    running.stop()


def test_timeout_is_504(held: Running) -> None:
    """A request that takes too long is given up."""
    with held.client() as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="cost-analyst", messages=[{"role": "user", "content": "hold"}])
    assert caught.value.status_code == 504


async def test_queue_full_is_refused() -> None:
    """While one request runs and one waits, a third is told to come back."""
    from potstill.serve.jobs import AsyncJob
    from potstill.serve.outage import QueueFullError
    from potstill.serve.worker import Worker
    from potstill.student.answers import StudentQuery

    student = Scripted()
    worker = Worker(student, max_batch=1, max_queue=1)
    worker.start()
    query = StudentQuery(role="cost-analyst", messages=(Message(role="user", content="hold"),), max_new_tokens=5)
    first = AsyncJob(worker, [worker.prepare(query)])
    assert student.started.wait(20)  # the student has it
    waiting = AsyncJob(worker, [worker.prepare(query)])
    with pytest.raises(QueueFullError):
        AsyncJob(worker, [worker.prepare(query)])
    waiting.cancel()
    student.released.set()
    assert [piece async for piece in first.pieces()][-1].answer is not None
    replaced = AsyncJob(worker, [worker.prepare(query)])  # a waiting client that left gives its place back
    await worker.close()
    assert [piece async for piece in replaced.pieces()][-1].answer is not None
    assert (worker.running, worker.waiting) == (0, 0)


async def test_a_bug_fails_the_requests_that_run_and_no_other() -> None:
    """When the engine breaks, what runs is told, and the next request is answered."""
    from potstill.serve.jobs import AsyncJob
    from potstill.serve.outage import EngineFailedError
    from potstill.serve.worker import Worker
    from potstill.student.answers import StudentQuery
    from potstill.student.scripted import ScriptedStudent

    def script(query: StudentQuery) -> str:
        if query.messages[-1].content == "break":
            raise RuntimeError
        return "fine"

    worker = Worker(ScriptedStudent(script, roles=("one",)), max_batch=4, max_queue=4)
    worker.start()
    for text, works in (("break", False), ("go", True)):
        query = StudentQuery(role="one", messages=(Message(role="user", content=text),), max_new_tokens=5)
        job = AsyncJob(worker, [worker.prepare(query)])
        if works:
            assert [piece async for piece in job.pieces()][-1].answer.text == "fine"
        else:
            with pytest.raises(EngineFailedError):
                [piece async for piece in job.pieces()]
    await worker.close()


def test_rate_limit_tells_when_to_come_back() -> None:
    """A key has a minute's worth of requests at once, then one every so often; other keys are not touched."""
    rates = Rates(per_minute=2)
    assert rates.take("a", 0.0)["x-ratelimit-remaining-requests"] == "1"
    rates.take("a", 0.0)
    with pytest.raises(ApiError) as caught:
        rates.take("a", 1.0)
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "29")
    rates.take("b", 1.0)
    rates.take("a", 31.0)


def test_cache_wishes_and_headers(tmp_path: Path) -> None:
    """`x-potstill-cache` reaches the router, an unknown wish is 400, and headers tell path, cost and trace."""
    router = Router()
    reply = ask(router, tmp_path, cache="no-store")
    assert router.wishes == (True, False)
    assert (reply.headers["x-potstill-route"], reply.headers["x-potstill-cost-usd"]) == ("student", "0")
    assert reply.headers["x-potstill-trace"] == "t"
    assert ask(router, tmp_path, cache="nonsense").status_code == 400


async def test_async_client(held: Running) -> None:
    """The async client works too."""
    async with openai.AsyncOpenAI(base_url=f"{held.url}/v1", api_key=KEY, max_retries=0) as client:
        reply = await client.chat.completions.create(model="cost-analyst", messages=QUESTION)
    assert reply.choices[0].message.content == "cost-analyst says hello"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, "False"), (signal.SIGINT, "True")])
def test_signals_drain(tmp_path: Path, number: signal.Signals, expected: str) -> None:
    """SIGTERM and SIGINT end the server in order, and are told apart."""
    script = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom potstill.config import ServeConfig\n"
        "from potstill.serve.app import create_app\nfrom potstill.serve.server import listen, run\n"
        "from tests.contract.test_serve_openai import Scripted\n"
        "serve = ServeConfig()\napp = create_app(Scripted(), serve, log_file=Path(sys.argv[1]))\n"
        "ready = lambda: print('ready', flush=True)\n"
        "print(asyncio.run(run(app, serve, listen('127.0.0.1', 0), ready)))\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, cwd=root, env=dict(os.environ), stdout=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(60, process.kill)
        guard.start()
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        rest = process.stdout.read()
        guard.cancel()
    assert (rest.strip(), process.returncode) == (expected, 0)


class Held(Router):
    """Answers a moment later."""

    async def answer(self, question: str, **wishes: Any) -> SimpleNamespace:
        """Let the others come meanwhile."""
        await asyncio.sleep(0.2)
        return await super().answer(question, **wishes)


async def test_a_burst_gets_no_more_places_than_there_are(tmp_path: Path) -> None:
    """Of five requests to `hybrid` in the same moment two are taken, where the queue holds two; the others get 503."""
    parts = Parts(keys=Keys((KEY,)), router=lambda _: lambda: nullcontext(Held()))
    serve = ServeConfig(limits=ServeLimits(max_queue=2))
    app = create_app(Scripted(), serve, log_file=tmp_path / "log", parts=parts)
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    states: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "state": {}}, told.get, states.put))
    await told.put({"type": "lifespan.startup"})
    await states.get()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=HEADERS) as client:
        body = {"model": "hybrid", "messages": QUESTION}
        replies = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(5)))
    await told.put({"type": "lifespan.shutdown"})
    await life
    assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503, 503]
