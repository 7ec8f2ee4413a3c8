"""An answer as a stream of server-sent events: how it begins, and how it ends whatever happens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

from starlette.responses import StreamingResponse

from potstill.errors import PotstillError
from potstill.serve.errors import ApiError, translated
from potstill.serve.replies import event

HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
Piece = TypeVar("Piece")


def streamed(events: AsyncGenerator[str], stop: Callable[[], object]) -> StreamingResponse:
    """A response of these events; where they fail, the last one says how. `stop` ends the work, also when the client leaves."""
    return StreamingResponse(_to_the_end(events, stop), media_type="text/event-stream", headers=HEADERS)


async def chained(first: Piece | None, rest: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
    """The pieces, the first of which was waited for already; None: there are none."""
    if first is not None:
        yield first
    async for piece in rest:
        yield piece


async def _to_the_end(events: AsyncGenerator[str], stop: Callable[[], object]) -> AsyncIterator[str]:
    try:
        async with aclosing(events):
            async for line in events:
                yield line
    except TimeoutError:
        yield event(ApiError(504, "the answer took too long", code="timeout").body)
    except PotstillError as error:
        yield event(translated(error).body)
    finally:
        stop()
