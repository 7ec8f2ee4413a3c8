"""Shipped fakes: a teacher and a transport that follow a script, for tests and for trying out the stages."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.paid import free_answer
from potstill.teacher.transport import Received

Script = Callable[[TeacherRequest], str]


class ScriptedTeacher:
    """Answers by a function of the request, for nothing. An exception that the script raises is passed on.

    `asked` counts requests by key.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self.asked: Counter[str] = Counter()

    async def ask(self, request: TeacherRequest) -> Answer:
        """Answer one request by the script."""
        self.asked[request.key] += 1
        return free_answer(request, self._script(request))

    async def stream(self, request: TeacherRequest, tell: Callable[[str], None]) -> Answer:
        """Answer word by word; others may work between two words."""
        answer = await self.ask(request)
        for piece in re.findall(r"\s*\S+\s*", answer.text):
            tell(piece)
            await asyncio.sleep(0)
        return answer


class ScriptedTransport:
    """Gives the replies of a list, one a send, the last one for ever after.

    `sent` holds the requests in order; `delay_s` is how long each send takes.
    """

    def __init__(self, replies: list[Received], *, delay_s: float = 0.0) -> None:
        self._replies = replies
        self._delay_s = delay_s
        self.sent: list[TeacherRequest] = []

    async def send(self, request: TeacherRequest) -> Received:
        """Give the next reply of the script."""
        self.sent.append(request)
        await asyncio.sleep(self._delay_s)
        return self._replies[min(len(self.sent), len(self._replies)) - 1]

    async def close(self) -> None:
        """Nothing to let go of."""


def reply_200(text: str, *, finish_reason: str = "STOP", input_tokens: int = 10, output_tokens: int = 20) -> Received:
    """A generateContent reply as the wire has it."""
    candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish_reason, "index": 0}
    usage = {
        "promptTokenCount": input_tokens,
        "candidatesTokenCount": output_tokens,
        "totalTokenCount": input_tokens + output_tokens,
    }
    return Received(200, json.dumps({"candidates": [candidate], "usageMetadata": usage, "responseId": "scripted"}))


def reply_error(status: int, name: str, message: str, *details: dict[str, Any]) -> Received:
    """An error as the wire has it: a `google.rpc.Status`."""
    error = {"code": status, "message": message, "status": name, **({"details": list(details)} if details else {})}
    return Received(status, json.dumps({"error": error}))


def reply_quota(*violations: tuple[str, int], retry_s: float | None = None) -> Received:
    """A 429 that names violated quotas by quotaId and quotaValue, with or without RetryInfo."""
    failure: dict[str, Any] = {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": quota_id, "quotaValue": str(value)} for quota_id, value in violations],
    }
    advice = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{retry_s}s"}
    details: list[dict[str, Any]] = [failure, *([advice] if retry_s is not None else [])]
    return reply_error(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", *details)
