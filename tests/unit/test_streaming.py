"""A stream's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from potstill.serve.streaming import Streamed


async def test_a_client_that_left_before_the_first_event_ends_the_work() -> None:
    """The work is stopped also where nobody took an event of it."""
    stopped: list[bool] = []
    taken: list[bool] = []

    async def events() -> AsyncGenerator[str]:
        taken.append(True)
        yield "data: never taken\n\n"

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(_: object) -> None:
        await asyncio.sleep(0)

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}  # uvicorn's
    await Streamed(events(), lambda: stopped.append(True))(scope, receive, send)
    assert (taken, stopped) == ([], [True])
