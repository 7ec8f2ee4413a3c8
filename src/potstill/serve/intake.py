"""Reading a request, and waiting for work while its client is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TypeVar

from starlette.requests import Request

from potstill.config import ServeLimits
from potstill.serve.errors import ApiError, too_large
from potstill.serve.wire import Strict, read_request

T = TypeVar("T")
Asked = TypeVar("Asked", bound=Strict)


async def read(request: Request, kind: type[Asked], limits: ServeLimits) -> Asked:
    """The request's body as JSON of a kind; raises ApiError.

    It must say that it is JSON: a foreign web page can send that to a server on this machine only after asking whether
    it may, which this server does not answer.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await _body(request, limits.max_body_bytes)
    except TimeoutError as error:
        message = f"the body did not come within {limits.body_timeout_s:g} s"
        raise ApiError(408, message, code="body_timeout") from error
    return read_request(kind, body)


async def _body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit; a chunked one has no length to check before."""
    body = bytearray()
    async with aclosing(request.stream()) as stream:
        async for part in stream:
            body += part
            if len(body) > limit:
                raise too_large(limit)
    return bytes(body)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, cancelling it as soon as the client goes away."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client went away", code="client_closed")
        return await task
    finally:
        task.cancel()
        leaving.cancel()
