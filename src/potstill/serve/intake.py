"""Reading a request, and waiting for work while its client is still there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from potstill.config import ServeLimits
from potstill.serve.errors import ApiError, too_large
from potstill.serve.wire import NamedSchema, SchemaFormat, StreamOptions, Strict, TextPart, Turn

WRONG_KIND = ("string_type", "list_type")
T = TypeVar("T")
Asked = TypeVar("Asked", bound=Strict)


async def read(request: Request, kind: type[Asked], limits: ServeLimits) -> Asked:
    """The request's body as JSON of a kind; raises ApiError.

    It must say that it is JSON: a foreign web page can send that to a server on this machine only after asking whether
    it may, which this server does not answer.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "the body must not be compressed", code="unsupported_media_type")
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


def read_request(kind: type[Asked], body: bytes) -> Asked:
    """Read a request body; raises ApiError (400) naming the parameter. A null is as good as nothing."""
    try:
        data = json.loads(body)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        message = "the body is not valid JSON"
        raise ApiError(400, message, code="invalid_json") from error
    if isinstance(data, Mapping):
        data = {name: value for name, value in data.items() if value is not None}
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(kind, error) from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from error


def _refusal(kind: type[Strict], error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_input=False)
    # Of a text or a list, where neither fits, the one that was tried has more to say than the wrong kind of the other.
    first = next((one for one in problems if one["type"] not in WRONG_KIND), problems[0])
    param = _param(kind, first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"{param}: this server does not support it"
        return ApiError(400, message, code="unsupported_parameter", param=param)
    problem = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param or 'request'}: {problem}", code="invalid_value", param=param)


def _param(kind: type[Strict], place: Sequence[str | int]) -> str | None:
    """The parameter's name without pydantic's own names for the members of a union."""
    if not place:
        return None
    names = [str(place[0])]
    nested = {field.alias or name for model in (Turn, TextPart, NamedSchema, StreamOptions, SchemaFormat)
              for name, field in model.model_fields.items()}  # fmt: skip
    for part in place[1:]:
        if isinstance(part, int) or (part in nested and part != names[-1]):  # twice: a union's tag, then its field
            names.append(str(part))
    return ".".join(names) if place[0] in kind.model_fields else str(place[0])[:64]


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
