"""What to do after a failed attempt. Pure: time, attempt number and jitter are arguments.

Source: the Gemini API's error bodies (`google.rpc.QuotaFailure`, `RetryInfo`, `ErrorInfo`). The advice stands in the
body, never in a header, and a violated daily quota outranks the few seconds that its RetryInfo names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from potstill.errors import KeyRefusedError, PotstillError, QuotaError, UsageError
from potstill.files import parse_json
from potstill.teacher.pacing import MINUTE_S, next_day
from potstill.teacher.wire import FINAL, Reply
from potstill.wording import counted

BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0
MAX_ADVICE_S = 300.0
"""A longer advice than this is treated as a spent quota."""
EMPTY_RETRIES = 2
ADVISED_ATTEMPTS = 50
"""Waits as advised by a quota that one request sits out at most, beyond `max_attempts`."""


@dataclass(frozen=True)
class Retry:
    """Send the same request again after `after_s`.

    `pause_all`: every request should wait so long; `overload`: fewer should be in flight; `empty`: a reply came, and
    was of no use.
    """

    after_s: float
    reason: str
    pause_all: bool = False
    overload: bool = False
    empty: bool = False


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
    """Decide after attempt number `attempt` (1 is the first). `jitter` in 0..1 spreads the waits.

    A wait that a quota asks for is billed nothing and says when it ends: it does not use up `max_attempts`.
    """
    error = _error(failure.body)
    if failure.status in (400, 401, 403, 404):
        return _client_error(failure.status, error)
    limited = failure.status == HTTPStatus.TOO_MANY_REQUESTS
    if limited and (stop := _spent(error, now)) is not None:
        return stop
    advice = _advice_s(error) if limited else None
    if advice is not None and attempt < max_attempts + ADVISED_ATTEMPTS:
        return Retry(advice * (1 + 0.1 * jitter) + 0.05, "quota, as advised", pause_all=True)
    reason = f"http {failure.status}" if failure.status is not None else failure.kind
    if failure.status is not None and not _passing(failure.status):
        return GiveUp(reason, str(error.get("message") or reason))
    if attempt >= max_attempts:
        return GiveUp(reason, f"{error.get('message') or reason}, {counted(attempt, 'attempt')}")
    backoff_s = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (attempt - 1)) * (0.5 + jitter)
    overload = failure.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
    return Retry(backoff_s, reason, overload=overload)


def after_reply(reply: Reply | None, empty: int, jitter: float) -> Keep | Retry | GiveUp:
    """Decide on a reply with status 200, after `empty` earlier ones without use; None is one that could not be read.

    Text is kept whatever the finish reason, which stands beside it. Without text, a refusal or a spent token limit is
    kept too: the same request would end, and be billed, the same way. Anything else without text is asked again.
    """
    if reply is not None and (reply.text.strip() or reply.finish_reason in FINAL):
        return Keep()
    reason = "unreadable reply" if reply is None else f"empty reply ({reply.finish_reason})"
    if empty >= EMPTY_RETRIES:
        return GiveUp("unreadable" if reply is None else "empty", f"{reason}, {counted(empty + 1, 'time')}")
    return Retry(BACKOFF_S * (0.5 + jitter), reason, empty=True)


def learned_limits(body: str) -> dict[str, int]:
    """The limits that a 429 names: `rpm`, `tpm`, `rpd` -> value. A quota of an unknown kind teaches nothing."""
    found: dict[str, int] = {}
    for violation in _violations(_error(body)):
        identity, value = str(violation.get("quotaId", "")), str(violation.get("quotaValue", ""))
        name = _dimension(identity)
        if name is not None and value.isdecimal() and int(value) > 0:
            found[name] = min(int(value), found.get(name, int(value)))
    return found


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
        hint = "check the key: GOOGLE_API_KEY, else GEMINI_API_KEY; OPENAI_API_KEY with teacher.provider: openai"
        return Stop("key refused", KeyRefusedError(f"the teacher refused the key: {text}", hint=hint))
    if status == HTTPStatus.NOT_FOUND:
        return Stop(
            "unknown model", UsageError(f"the teacher does not know the model: {text}", hint="see teacher.model")
        )
    return GiveUp(f"http {status}", text)


def _spent(error: dict[str, Any], now: datetime) -> Stop | None:
    """A 429 after which waiting some seconds is no use."""
    violations = _violations(error)
    for violation in violations:
        if str(violation.get("quotaValue")) == "0":
            message = f"this model is not available in your tier ({violation.get('quotaId')}: limit 0)"
            return Stop("limit 0", UsageError(message, hint="choose another teacher.model, or enable billing"))
    for violation in violations:
        if _dimension(str(violation.get("quotaId"))) == "rpd":
            back = next_day(now)
            message = f"the day's quota of {violation.get('quotaValue')} requests is spent; it is full again at {back:%Y-%m-%d %H:%M} UTC"
            hint = "run the same command again then"
            return Stop("daily quota", QuotaError(message, retry_at=back, hint=hint))
    advice = retry_delay_s(error)
    if advice is not None and advice > MAX_ADVICE_S:
        back = now + timedelta(seconds=advice)
        message = f"the quota is spent; the teacher asks to come back at {back:%Y-%m-%d %H:%M} UTC"
        return Stop("quota", QuotaError(message, retry_at=back, hint="run the same command again then"))
    return None


def _advice_s(error: dict[str, Any]) -> float | None:
    """How long a quota that comes back asks to wait; None for a lack of capacity, which names no quota."""
    advice = retry_delay_s(error)
    minute = any(_dimension(str(violation.get("quotaId"))) in ("rpm", "tpm") for violation in _violations(error))
    return MINUTE_S if advice is None and minute else advice


def _dimension(quota_id: str) -> str | None:
    """Which of our limits a quotaId speaks of."""
    if "PerDay" in quota_id or "Daily" in quota_id:
        return "rpd"
    if "PerMinute" not in quota_id:
        return None
    return "tpm" if "Tokens" in quota_id else "rpm"


def _passing(status: int) -> bool:
    """Whether a status may be another one the next time."""
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in (408, 429, 499)


def _violations(error: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        violation
        for detail in _details(error, "QuotaFailure")
        for violation in detail.get("violations") or []
        if isinstance(violation, dict)
    ]


def _error(body: str) -> dict[str, Any]:
    try:
        parsed = parse_json(body)
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
