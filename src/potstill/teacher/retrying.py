"""What to do after a failed attempt. Pure: time, attempt number and jitter are arguments.

Source: the Gemini API's error bodies (`google.rpc.QuotaFailure`, `RetryInfo`, `ErrorInfo`). The advice stands in the
body, never in a header, and a violated daily quota outranks the few seconds that its RetryInfo names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

from potstill.errors import KeyRefusedError, PotstillError, QuotaError, UsageError
from potstill.teacher.pacing import next_day
from potstill.teacher.wire import Reply

BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
MAX_ADVICE_S = 900.0
"""A longer advice than this is treated as a spent quota."""
EMPTY_RETRIES = 2


@dataclass(frozen=True)
class Retry:
    """Send the same request again after `after_s`; `pause_all` where every request should wait."""

    after_s: float
    reason: str
    pause_all: bool = False


@dataclass(frozen=True)
class GiveUp:
    """The request has failed for good; others may succeed."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Stop:
    """No request can succeed now."""

    reason: str
    error: PotstillError


@dataclass(frozen=True)
class Keep:
    """The reply is an answer."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt: `status` and `body` of the reply, or None and a `kind` where there was none."""

    kind: str
    status: int | None = None
    body: str = ""


def after_failure(
    failure: Failure, attempt: int, max_attempts: int, now: datetime, jitter: float
) -> Retry | GiveUp | Stop:
    """Decide after attempt number `attempt` (1 is the first). `jitter` in 0..1 spreads the waits."""
    error = _error(failure.body)
    if failure.status in (400, 401, 403, 404):
        return _client_error(failure.status, error)
    if failure.status == HTTPStatus.TOO_MANY_REQUESTS and (decided := _quota(error, now)) is not None:
        return decided
    reason = f"http {failure.status}" if failure.status is not None else failure.kind
    if attempt >= max_attempts:
        return GiveUp(reason, f"{error.get('message') or reason}, {attempt} attempts")
    if failure.status == HTTPStatus.TOO_MANY_REQUESTS and (advice := retry_delay_s(error)) is not None:
        return Retry(advice * (1 + 0.1 * jitter) + 0.05, "quota, as advised", pause_all=True)
    if (
        failure.status is not None
        and failure.status < HTTPStatus.INTERNAL_SERVER_ERROR
        and failure.status not in (408, 429, 499)
    ):
        return GiveUp(reason, str(error.get("message") or reason))
    return Retry(min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)) * (0.5 + jitter), reason)


def after_reply(reply: Reply | None, attempt: int, max_attempts: int, jitter: float) -> Keep | Retry | GiveUp:
    """Decide on a reply with status 200; None is one that could not be read."""
    if reply is not None and (reply.text.strip() or reply.finish_reason not in ("STOP", "OTHER", "MISSING")):
        return Keep()
    reason = "unreadable reply" if reply is None else f"empty reply ({reply.finish_reason})"
    if attempt >= min(max_attempts, 1 + EMPTY_RETRIES):
        return GiveUp("unreadable" if reply is None else "empty", f"{reason}, {attempt} attempts")
    return Retry(BACKOFF_S * (0.5 + jitter), reason)


def retry_delay_s(error: dict[str, Any]) -> float | None:
    """The wait that an error body advises, in seconds: RetryInfo, or the finer figure in the message."""
    found = re.search(r"[Pp]lease retry in ([0-9.]+)(ms|s)\b", str(error.get("message", "")))
    if found:
        return float(found[1]) / (1000 if found[2] == "ms" else 1)
    for detail in _details(error, "RetryInfo"):
        if match := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)s", str(detail.get("retryDelay", ""))):
            return float(match[1])
    return None


def _client_error(status: int, error: dict[str, Any]) -> GiveUp | Stop:
    text = str(error.get("message") or f"http {status}")
    reasons = {detail.get("reason") for detail in _details(error, "ErrorInfo")}
    if status in (401, 403) or "API_KEY_INVALID" in reasons or "API key not valid" in text:
        hint = "check GOOGLE_API_KEY / GEMINI_API_KEY; GOOGLE_API_KEY wins where both are set"
        return Stop("key refused", KeyRefusedError(f"the teacher refused the key: {text}", hint=hint))
    if status == HTTPStatus.NOT_FOUND:
        return Stop(
            "unknown model", UsageError(f"the teacher does not know the model: {text}", hint="see teacher.model")
        )
    return GiveUp(f"http {status}", text)


def _quota(error: dict[str, Any], now: datetime) -> Stop | None:
    """A 429 after which waiting some seconds is no use."""
    violations = [violation for detail in _details(error, "QuotaFailure") for violation in detail.get("violations", [])]
    for violation in violations:
        if str(violation.get("quotaValue")) == "0":
            message = f"this model is not available in your tier ({violation.get('quotaId')}: limit 0)"
            return Stop("limit 0", UsageError(message, hint="choose another teacher.model, or enable billing"))
    for violation in violations:
        if "PerDay" in str(violation.get("quotaId")):
            back = next_day(now)
            message = f"the day's quota of {violation.get('quotaValue')} requests is spent; it is full again at {back:%Y-%m-%d %H:%M} UTC"
            return Stop("daily quota", QuotaError(message, retry_at=back, hint="run the same command again then"))
    advice = retry_delay_s(error)
    if advice is not None and advice > MAX_ADVICE_S:
        return Stop("quota", QuotaError(f"the quota is spent; the teacher asks to wait {advice:.0f} s"))
    return None


def _error(body: str) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except json.JSONDecodeError:
        return {}
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]
    error = parsed.get("error") if isinstance(parsed, dict) else None
    return error if isinstance(error, dict) else {}


def _details(error: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for detail in error.get("details") or []:
        if isinstance(detail, dict) and str(detail.get("@type", "")).endswith(kind):
            yield detail
