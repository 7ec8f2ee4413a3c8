"""Gemini through google-generativeai, which Google ended on 2025-11-30: for who is bound to it. REST only.

The SDK has no asynchronous REST, so each request takes a thread. It forgets what its messages do not know (thoughts,
new finish reasons), so the reply is taken as it came over the wire.
"""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

from pydantic import SecretStr

from potstill.config import TeacherConfig
from potstill.errors import MachineError
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.transport import Received, unconnected

GENERATION = {
    "candidateCount": "candidate_count",
    "frequencyPenalty": "frequency_penalty",
    "maxOutputTokens": "max_output_tokens",
    "presencePenalty": "presence_penalty",
    "responseMimeType": "response_mime_type",
    "seed": "seed",
    "stopSequences": "stop_sequences",
    "temperature": "temperature",
    "topK": "top_k",
    "topP": "top_p",
}
SCHEMA = ("type", "format", "description", "nullable", "enum", "required", "maxItems", "minItems")
"""What the old API's Schema has of JSON Schema, besides `properties` and `items`."""


class LegacyTransport:
    """google-generativeai over REST, held to one attempt per call: no retries, no redirect."""

    def __init__(self, teacher: TeacherConfig, key: SecretStr) -> None:
        self._sdk = _load()
        self._timeout_s = teacher.timeout_s
        self._threads = ThreadPoolExecutor(teacher.max_concurrency, thread_name_prefix="teacher")
        self._seen = threading.local()
        options = {"api_endpoint": teacher.base_url} if teacher.base_url else None
        self._sdk.configure(api_key=key.get_secret_value(), transport="rest", client_options=options)
        self._watch(teacher.max_concurrency)

    async def send(self, request: TeacherRequest) -> Received:
        """Send one generateContent request; the reply's body comes back unparsed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s + 5):  # `requests` bounds each read, not the whole
                return await loop.run_in_executor(self._threads, self._send, request)
        except TimeoutError:
            return Received(status=None, lost="timeout")

    async def close(self) -> None:
        """Let go of the threads; one that still waits for a reply ends by its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _watch(self, connections: int) -> None:
        """Let the SDK's session repeat nothing, hold enough connections, and show each reply as it came."""
        from google.generativeai.client import get_default_generative_client
        from requests.adapters import HTTPAdapter

        session = get_default_generative_client()._transport._session  # noqa: SLF001  (the SDK has no public way to it)
        session.max_redirects = 0
        session._refresh_status_codes = ()  # noqa: SLF001  (a 401 would be posted twice more)
        session.hooks["response"].append(self._see)
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=connections))

    def _send(self, request: TeacherRequest) -> Received:
        from google.api_core.exceptions import GoogleAPICallError
        from google.auth.exceptions import GoogleAuthError
        from google.protobuf.json_format import ParseError
        from requests.exceptions import ConnectTimeout, RequestException, Timeout, TooManyRedirects
        from urllib3.exceptions import NewConnectionError

        self._seen.reply = None
        try:
            arguments = _arguments(request.body)
        except ValueError as error:
            return Received(HTTPStatus.BAD_REQUEST, json.dumps({"error": {"message": str(error)}}))
        model = self._sdk.GenerativeModel(request.model, system_instruction=request.body.get("systemInstruction"))
        try:
            model.generate_content(**arguments, request_options={"timeout": self._timeout_s, "retry": None})
        except Timeout as error:
            return (
                unconnected("ConnectTimeout") if isinstance(error, ConnectTimeout) else Received(None, lost="timeout")
            )
        except TooManyRedirects as error:
            return Received(status=error.response.status_code if error.response is not None else HTTPStatus.FOUND)
        except RequestException as error:
            unsent = isinstance(getattr(error.args[0] if error.args else None, "reason", None), NewConnectionError)
            name = type(error).__name__
            return unconnected(name) if unsent else Received(None, lost=f"connection: {name}")
        except (GoogleAPICallError, GoogleAuthError, ParseError, ValueError):
            pass  # the reply as it came says more
        return self._seen.reply or Received(status=None, lost="no reply")

    def _see(self, response: Any, **_: Any) -> None:
        """Keep the reply of this thread's request; one that is no UTF-8 is lost."""
        try:
            self._seen.reply = Received(response.status_code, response.content.decode("utf-8"))
        except UnicodeDecodeError:
            self._seen.reply = Received(status=None, lost="reply is not UTF-8")


def _load() -> Any:
    """The SDK, without its notices that it has ended: the user chose it, and docs/teachers.md says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            import google.generativeai as sdk
        except ImportError as error:
            message = "teacher.sdk: google-generativeai needs that package"
            raise MachineError(
                message, hint="pip install 'potstill[legacy]', or use teacher.sdk: google-genai"
            ) from error
    return sdk


def _arguments(body: dict[str, Any]) -> dict[str, Any]:
    """The SDK's arguments for a canonical body; raises ValueError for what it cannot send."""
    given = dict(body.get("generationConfig", {}))
    if (given.pop("thinkingConfig", None) or {}).get("thinkingBudget"):
        message = "google-generativeai cannot send a thinking budget"
        raise ValueError(message)
    schema = given.pop("responseJsonSchema", None)
    if unknown := sorted(set(given) - set(GENERATION)):
        message = f"google-generativeai cannot send generationConfig.{unknown[0]}"
        raise ValueError(message)
    config = {GENERATION[name]: value for name, value in given.items()}
    if schema is not None:
        config["response_schema"] = _old_schema(schema)
    return {"contents": body["contents"], "generation_config": config}


def _old_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema in the words of the old API."""
    old = {name: schema[name] for name in SCHEMA if name in schema}
    if "type" in old:
        old["type"] = str(old["type"]).upper()
    if "properties" in schema:
        old["properties"] = {name: _old_schema(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        old["items"] = _old_schema(schema["items"])
    return old
