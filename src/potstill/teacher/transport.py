"""One attempt over the wire: the protocol that every transport keeps, and Gemini's through its own SDK."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pydantic import SecretStr

from potstill.config import TeacherConfig
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.hearing import Hearing

NO_CONNECTION = "no connection"
"""How the word for an attempt begins that never left."""
REACH_HINT = "is the network up, and teacher.base_url right?"


@dataclass(frozen=True)
class Received:
    """What came back: a status and a body as received, or `lost` saying why nothing did (possibly paid).

    `unsent`: there was no connection, so that nothing left and nothing was billed.
    """

    status: int | None
    body: str = ""
    lost: str | None = None
    unsent: bool = False


def unconnected(cause: str) -> Received:
    """What comes back where no connection could be made."""
    return Received(status=None, lost=f"{NO_CONNECTION}: {cause}", unsent=True)


class Transport(Protocol):
    """Sends one request, once."""

    async def send(self, request: TeacherRequest) -> Received:
        """Send and wait for the whole reply; never raises for what the wire or the server does."""

    async def close(self) -> None:
        """Let go of connections."""


@runtime_checkable
class StreamingTransport(Transport, Protocol):
    """One that can pass a reply on while it arrives."""

    async def stream(self, request: TeacherRequest, hearing: Hearing) -> Received:
        """Like `send`; `hearing` takes each event, and keeps them where the caller is cancelled."""


GEMINI_URL = "https://generativelanguage.googleapis.com/"
"""Named where the config names no other: the SDK would look in the environment, which the config alone reads."""


class GeminiTransport:
    """google-genai, held to one attempt per call: no retries, no continuation, no silent second POST, no redirect.

    A redirect would be a second request that no ledger knows, and would carry the key to wherever it leads.
    """

    def __init__(self, teacher: TeacherConfig, key: SecretStr) -> None:
        self._timeout_s = teacher.timeout_s
        self._service = teacher.service
        self._client = gemini_client(teacher, key)

    async def send(self, request: TeacherRequest) -> Received:
        """Send one generateContent request; the reply's body comes back unparsed.

        The body goes out as the ledger has named it. The SDK's `generate_content` would first turn it into its own
        types and back, which costs CPU time and drops what it does not know; hence the layer below, which keeps
        the SDK's authentication, addresses, deadlines and errors. The dependency is bounded to what this was tested on.
        """
        try:
            async with asyncio.timeout(self._timeout_s + 5):  # the SDK's own deadline comes first; this one is certain
                response = await self._api.async_request("post", *self._addressed(request, "generateContent"))
        except Exception as error:
            if (received := received_error(error)) is None:
                raise
            return received
        return Received(status=200, body=response.body or "")

    async def stream(self, request: TeacherRequest, hearing: Hearing) -> Received:
        """Send one streamGenerateContent request; the body that comes back is all events as one reply."""
        try:
            async with asyncio.timeout(self._timeout_s + 5):
                where = self._addressed(request, "streamGenerateContent?alt=sse")
                async for event in await self._api.async_request_streamed("post", *where):
                    hearing.take(event.body or "")
        except Exception as error:
            if (received := received_error(error)) is None:
                raise
            return received
        return Received(status=200, body=hearing.whole() or "")

    @property
    def _api(self) -> Any:
        return self._client._api_client  # noqa: SLF001

    def _addressed(self, request: TeacherRequest, method: str) -> tuple[str, dict[str, Any]]:
        """Path and body of a request."""
        flex = {"serviceTier": "flex"} if (request.service or self._service) == "flex" else {}
        return f"models/{request.model.removeprefix('models/')}:{method}", {**request.body, **flex}

    async def close(self) -> None:
        """Close the SDK's connections."""
        await self._client.aio.aclose()


def gemini_client(teacher: TeacherConfig, key: SecretStr) -> Any:
    """The SDK's client, held to one attempt a call and to the server that it was told."""
    from google import genai
    from google.genai import types

    # The SDK warns about finish reasons it does not know, and about its two key variables; both are handled here.
    logging.getLogger("google_genai").setLevel(logging.ERROR)
    return genai.Client(
        api_key=key.get_secret_value(),
        vertexai=False,
        http_options=types.HttpOptions(
            base_url=teacher.base_url or GEMINI_URL,
            timeout=int(teacher.timeout_s * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            async_client_args={"allow_redirects": False},
        ),
    )


def received_error(error: Exception) -> Received | None:
    """What an exception of the SDK says about the wire or the server; None for one that is a bug."""
    import aiohttp
    import httpx2
    from google.genai import errors

    if isinstance(error, errors.APIError):
        return Received(status=error.code, body=_error_body(error))
    unmade = (
        aiohttp.ClientConnectorError,
        aiohttp.ConnectionTimeoutError,
        aiohttp.InvalidURL,
        httpx2.ConnectError,
        httpx2.ConnectTimeout,
    )
    if isinstance(error, unmade):
        return unconnected(type(error).__name__)
    if isinstance(error, TimeoutError):
        return Received(status=None, lost="timeout")
    if isinstance(error, UnicodeDecodeError):
        return Received(status=None, lost="reply is not UTF-8")
    # What the SDK lets through when a connection breaks, whichever HTTP client it uses.
    if isinstance(error, aiohttp.ClientError | httpx2.HTTPError | ConnectionError):
        return Received(status=None, lost=f"connection: {type(error).__name__}")
    return None


def _error_body(error: Any) -> str:
    import json

    return json.dumps(error.details, ensure_ascii=False) if isinstance(error.details, dict | list) else ""
