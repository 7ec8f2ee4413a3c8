"""A server that cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
import pytest

from potstill.config import ServeConfig
from potstill.errors import MachineError
from potstill.serve.server import listen, run, url_of


async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application whose start-up fails."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


async def test_a_failed_start_is_no_success() -> None:
    """Where the application does not come up, nothing is announced and the command does not end in 0."""
    announced: list[bool] = []
    with listen("127.0.0.1", 0) as listener, pytest.raises(MachineError):
        await run(broken, ServeConfig(), listener, lambda: announced.append(True))
    assert not announced


async def test_a_second_signal_ends_the_drain(capfd: pytest.CaptureFixture[str]) -> None:
    """One SIGTERM waits for the request that runs; a second one ends the server at once, and shows no traceback."""
    held, up = asyncio.Event(), asyncio.Event()

    async def endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        held.set()
        await asyncio.Event().wait()

    async def ask() -> None:
        async with httpx.AsyncClient(timeout=None) as client:
            await client.get(url)

    with listen("127.0.0.1", 0) as listener:
        url = url_of(listener)
        serving = asyncio.create_task(run(endless, ServeConfig(), listener, up.set))
        await up.wait()
        asking = asyncio.create_task(ask())
        await held.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert not serving.done()
        os.kill(os.getpid(), signal.SIGTERM)
        interrupted = await serving
    asking.cancel()
    assert not interrupted
    assert "Traceback" not in capfd.readouterr().err
