"""An answer as a stream of server-sent events: how it begins, and how it ends whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from potstill.errors import PotstillError
from potstill.serve.errors import ApiError, engine_failed, translated
from potstill.serve.outage import EngineFailedError
from potstill.serve.replies import event

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Piece = TypeVar("Piece")


class Streamed(StreamingResponse):
    """A response of these events; where they fail, the last one says how.

    `stop` ends the work whatever happens, also where the client has left before the first event was taken.
    """

    def __init__(self, events: AsyncGenerator[str], stop: Callable[[], object]) -> None:
        super().__init__(_to_the_end(events), media_type="text/event-stream", headers=HEADERS)
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events while the client is there."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stop()


async def chained(first: Piece | None, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The pieces, the first of which was waited for already; None: there are none."""
    if first is not None:
        yield first
    async for piece in rest:
        yield piece


async def _to_the_end(events: AsyncGenerator[str]) -> AsyncIterator[str]:
    try:
        async with aclosing(events):
            async for line in events:
                yield line
                await asyncio.sleep(0)  # else many events at once are written after a client that is gone
    except TimeoutError:
        yield event(ApiError(504, "the answer took too long", code="timeout").body)
    except EngineFailedError:
        yield event(engine_failed().body)
    except PotstillError as error:
        yield event(translated(error).body)
