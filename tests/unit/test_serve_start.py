"""A server that cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from potstill.cli.serve_local import _encoder_of
from potstill.cli.session import Session
from potstill.config import ServeConfig, resolve
from potstill.errors import MachineError
from potstill.serve.errors import translated
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


def test_what_a_machine_lacks_is_told_without_its_paths() -> None:
    """A client learns that the machine failed, not where its files lie."""
    told = translated(MachineError("cannot write /home/someone/cache: disk full"))
    assert (told.status, told.code) == (503, "machine_error")
    assert "/home" not in told.message


def test_two_first_requests_open_one_encoder(tmp_path: Path) -> None:
    """Embeddings that are asked for at once, before the encoder is there, are made; so are all later ones."""
    settings = [f"workspace={tmp_path}", "cache.encoder=all-MiniLM-L6-v2"]
    _, encode = _encoder_of(Session("serve-local", resolve(settings=settings)))
    together = threading.Barrier(2)

    def ask() -> int:
        together.wait()
        return len(encode(["hello"])[0])

    with ThreadPoolExecutor(2) as pool:
        sizes = [each.result() for each in [pool.submit(ask) for _ in range(2)]]
    assert {*sizes, len(encode(["hello"])[0])} == {384}
