"""Any OpenAI-compatible server as a teacher, through the openai client: vLLM, Ollama, other hosts."""

from __future__ import annotations

import asyncio
import json
import re
from http import HTTPStatus
from typing import Any

from pydantic import SecretStr

from potstill.config import TeacherConfig
from potstill.errors import MachineError
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.transport import Received, unconnected

OPENAI_URL = "https://api.openai.com/v1"
"""Named where the config names no other: the client would look in the environment, which the config alone reads."""
PARAMETERS = {
    "frequencyPenalty": "frequency_penalty",
    "presencePenalty": "presence_penalty",
    "seed": "seed",
    "stopSequences": "stop",
    "temperature": "temperature",
    "topP": "top_p",
}
OF_JSON = {"responseMimeType", "responseJsonSchema"}
OF_LIMITS = {"maxOutputTokens", "thinkingConfig"}
UNCONNECTED = {"ConnectError", "ConnectTimeout"}
"""Of httpx, or of httpx2, whichever the client uses."""
TRY_AGAIN = re.compile(r"try again in (?:(\d+)m(?!s))?\s*([0-9.]+)(ms|s)\b", re.IGNORECASE)
TYPE = "type.googleapis.com/google.rpc."


class OpenAITransport:
    """The openai client, held to one attempt per call: no retries, no redirect. The reply comes back as it was."""

    def __init__(self, teacher: TeacherConfig, key: SecretStr | None) -> None:
        try:
            import openai
        except ImportError as error:
            message = "teacher.provider: openai needs the openai client"
            raise MachineError(message, hint="pip install 'potstill[openai]'") from error
        self._timeout_s = teacher.timeout_s
        self._limit = "max_tokens" if teacher.base_url else "max_completion_tokens"
        self._client = openai.AsyncOpenAI(
            api_key=key.get_secret_value() if key else "none-needed",
            base_url=teacher.base_url or OPENAI_URL,
            max_retries=0,
            timeout=teacher.timeout_s,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def send(self, request: TeacherRequest) -> Received:
        """Send one chat completion; never raises for what the wire or the server does."""
        import openai

        try:
            parameters = chat_parameters(request, self._limit)
        except ValueError as error:
            return Received(HTTPStatus.BAD_REQUEST, json.dumps({"error": {"message": str(error)}}))
        try:
            async with asyncio.timeout(self._timeout_s + 5):  # the client's own deadlines are for each read
                raw = await self._client.chat.completions.with_raw_response.create(**parameters)
        except openai.APIStatusError as error:
            reply = error.response
            return Received(error.status_code, as_status(error.status_code, reply.text, dict(reply.headers)))
        except (openai.APIConnectionError, TimeoutError) as error:
            return _without_reply(error)
        try:
            return Received(status=raw.http_response.status_code, body=raw.http_response.content.decode("utf-8"))
        except UnicodeDecodeError:
            return Received(status=None, lost="reply is not UTF-8")

    async def close(self) -> None:
        """Close the client's connections."""
        await self._client.close()


def _without_reply(error: Exception) -> Received:
    """Why there is no reply: no connection was made, it took too long, or it broke."""
    import openai

    cause = type(error.__cause__ or error).__name__
    if cause in UNCONNECTED:
        return unconnected(cause)
    is_late = isinstance(error, openai.APITimeoutError | TimeoutError)
    return Received(status=None, lost="timeout" if is_late else f"connection: {cause}")


def chat_parameters(request: TeacherRequest, limit: str) -> dict[str, Any]:
    """A canonical generateContent body as the parameters of a chat completion. Pure.

    `limit` names the token limit: OpenAI's own server wants `max_completion_tokens`, others know `max_tokens`; either
    bounds reasoning and text together. Raises ValueError for what a chat completion does not have.
    """
    body = request.body
    given = body.get("generationConfig", {})
    if unknown := sorted(set(given) - set(PARAMETERS) - OF_JSON - OF_LIMITS):
        message = f"teacher.provider: openai cannot send generationConfig.{unknown[0]}"
        raise ValueError(message)
    system = [{"role": "system", "content": _text(body["systemInstruction"])}] if "systemInstruction" in body else []
    roles = {"user": "user", "model": "assistant"}
    turns = [{"role": roles[turn.get("role", "user")], "content": _text(turn)} for turn in body["contents"]]
    parameters: dict[str, Any] = {
        "model": request.model,
        "messages": [*system, *turns],
        limit: given["maxOutputTokens"],
        **{PARAMETERS[name]: value for name, value in given.items() if name in PARAMETERS},
    }
    if "responseJsonSchema" in given:
        schema = {"name": "answer", "schema": given["responseJsonSchema"]}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif given.get("responseMimeType") == "application/json":
        parameters["response_format"] = {"type": "json_object"}
    return parameters


def as_status(status: int, text: str, headers: dict[str, str]) -> str:
    """An error reply as a google.rpc.Status, which the retries read. Pure.

    The advice to wait stands in `Retry-After` or in the words here; a spent balance is a limit of 0.
    """
    error = _error(text)
    if isinstance(error.get("details"), list):
        return json.dumps({"error": error})  # it speaks Gemini's own way
    details: list[dict[str, Any]] = []
    message = str(error.get("message") or f"http {status}")
    if error.get("code") == "insufficient_quota":
        violation = {"quotaId": "insufficient_quota", "quotaValue": "0"}
        details = [{"@type": f"{TYPE}QuotaFailure", "violations": [violation]}]
    elif (advice := _advice_s(message, headers)) is not None:
        details = [{"@type": f"{TYPE}RetryInfo", "retryDelay": f"{advice:.3f}s"}]
    return json.dumps({"error": {"code": status, "message": message, "details": details}}, ensure_ascii=False)


def _advice_s(message: str, headers: dict[str, str]) -> float | None:
    lower = {name.lower(): value for name, value in headers.items()}
    for name, scale in (("retry-after-ms", 1000), ("retry-after", 1)):
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", lower.get(name, "")):
            return float(lower[name]) / scale
    if found := TRY_AGAIN.search(message):
        return 60 * int(found[1] or 0) + float(found[2]) / (1000 if found[3].lower() == "ms" else 1)
    return None


def _error(text: str) -> dict[str, Any]:
    """The error in a reply: an object under `error`, a text there, or the reply itself."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {"message": text[:500]}
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    if not isinstance(parsed, dict):
        return {"message": text[:500]}
    error = parsed.get("error", parsed)
    return error if isinstance(error, dict) else {"message": str(error)}


def _text(content: dict[str, Any]) -> str:
    parts = content.get("parts", [])
    if any(set(part) - {"text"} for part in parts):
        message = "teacher.provider: openai can send text only"
        raise ValueError(message)
    return "".join(part["text"] for part in parts)
