"""One attempt over the wire: the protocol that every transport keeps, and Gemini's through its own SDK."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import SecretStr

from potstill.config import TeacherConfig
from potstill.teacher.calls import TeacherRequest


@dataclass(frozen=True)
class Received:
    """What came back: a status and a body as received, or `lost` saying why nothing did (possibly paid)."""

    status: int | None
    body: str = ""
    lost: str | None = None


class Transport(Protocol):
    """Sends one request, once."""

    async def send(self, request: TeacherRequest) -> Received:
        """Send and wait for the whole reply; never raises for what the wire or the server does."""

    async def close(self) -> None:
        """Let go of connections."""


class GeminiTransport:
    """google-genai, held to one attempt per call: no retries, no continuation, no silent second POST, no redirect.

    A redirect would be a second request that no ledger knows, and would carry the key to wherever it leads.
    """

    def __init__(self, teacher: TeacherConfig, key: SecretStr) -> None:
        self._timeout_s = teacher.timeout_s
        self._service = teacher.service
        self._client = gemini_client(teacher, key)

    async def send(self, request: TeacherRequest) -> Received:
        """Send one generateContent request; the reply's body comes back unparsed."""
        try:
            async with asyncio.timeout(self._timeout_s + 5):  # the SDK's own deadline comes first; this one is certain
                response = await self._client.aio.models.generate_content(
                    model=request.model, contents=request.body["contents"], config=self._config(request)
                )
        except Exception as error:
            received = received_error(error)
            if received is None:
                raise
            return received
        http = response.sdk_http_response
        return Received(status=200, body=(http.body if http else None) or "")

    async def close(self) -> None:
        """Close the SDK's connections."""
        await self._client.aio.aclose()

    def _config(self, request: TeacherRequest) -> Any:
        from google.genai import types

        body = request.body
        values = {**body.get("generationConfig", {}), "shouldReturnHttpResponse": True, "automaticContinuation": False}
        if "systemInstruction" in body:
            values["systemInstruction"] = body["systemInstruction"]
        if (request.service or self._service) == "flex":
            values["serviceTier"] = "flex"
        known = {name for field in types.GenerateContentConfig.model_fields.values() for name in (field.alias,) if name}
        return types.GenerateContentConfig.model_validate(
            {name: value for name, value in values.items() if name in known}
        )


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
            base_url=teacher.base_url,
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
