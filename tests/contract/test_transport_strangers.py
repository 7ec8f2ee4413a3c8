"""The real SDK against a server that is not Gemini: nothing it does makes a second request, or raises."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from google.genai import errors
from pydantic import SecretStr

from potstill.config import TeacherConfig
from potstill.records import Message
from potstill.teacher.calls import build_request
from potstill.teacher.transport import GeminiTransport, Received

# The SDK inherits from a class that aiohttp asks nobody to inherit from.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

STRANGE = {
    "redirect": lambda: web.Response(status=307, headers={"Location": "/elsewhere"}),
    "page": lambda: web.Response(text="<html>a proxy's greeting</html>", content_type="text/html"),
    "gateway": lambda: web.Response(status=502, text="<html>bad gateway</html>", content_type="text/html"),
    "bytes": lambda: web.Response(body=b"\xff\xfe\x00"),
    "list": lambda: web.json_response([1, 2]),
    "no-gzip": lambda: web.Response(body=b"plain", headers={"Content-Encoding": "gzip"}),
    "nothing": web.Response,
}
UNREACHED = {"ContinuationInterruptedError", "FunctionInvocationError", "UnknownFunctionCallArgumentError", "UnsupportedFunctionError", "UnknownApiResponseError"}  # fmt: skip
"""The SDK's errors that cannot come up: continuation and functions are never used, and bodies come back unparsed."""


@pytest.fixture
async def stranger() -> AsyncIterator[tuple[TestServer, list[str]]]:
    """A server whose first path segment says what it answers; gives it and the paths that were asked for."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return STRANGE[request.path.split("/")[1]]() if request.path != "/elsewhere" else web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield server, asked


async def ask(server: TestServer, kind: str) -> Received:
    """Send one request to a server that answers so."""
    teacher = TeacherConfig(base_url=str(server.make_url(f"/{kind}")))
    transport = GeminiTransport(teacher, SecretStr("a-secret-key"))
    request = build_request(teacher, [Message(role="user", content="hi")], temperature=1, max_output_tokens=5)
    try:
        return await transport.send(request)
    finally:
        await transport.close()


@pytest.mark.parametrize("kind", sorted(STRANGE))
async def test_a_stranger_is_asked_once_and_never_raises(stranger: tuple[TestServer, list[str]], kind: str) -> None:
    """Whatever comes back is a Received after one request; a redirect is not followed, so the key goes nowhere else."""
    server, asked = stranger
    received = await ask(server, kind)
    assert len(asked) == 1
    assert (received.status is None) == (received.lost is not None)
    assert "a-secret-key" not in repr(received)


def test_every_error_of_the_sdk_is_known() -> None:
    """An SDK release that adds an error class fails here, so that it is mapped and not met by users first."""
    found = {
        name for name, item in inspect.getmembers(errors, inspect.isclass)
        if issubclass(item, Exception) and item.__module__ == errors.__name__ and not issubclass(item, errors.APIError)
    }  # fmt: skip
    assert found == UNREACHED
