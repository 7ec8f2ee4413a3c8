"""The error bodies that the emulator sends. Pure.

Source: `google.rpc.Status` and its details (ErrorInfo, BadRequest, QuotaFailure, Help, RetryInfo) as the Gemini API fills
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from potstill.teacher.emulator.faults import HTTP
from potstill.teacher.emulator.quotas import Exceeded

TYPE = "type.googleapis.com/google.rpc."
HELP = {
    "@type": f"{TYPE}Help",
    "links": [
        {
            "description": "Learn more about Gemini API quotas",
            "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
        }
    ],
}
OVER_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error,"
    " head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to:"
    " https://ai.dev/rate-limit. "
)


@dataclass(frozen=True)
class Refusal:
    """An HTTP status and the body that says why."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The reason in words."""
        return str(self.body["error"]["message"])


class RefusedError(Exception):
    """Ends the handling of a request with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def check(found: Refusal | None) -> None:
    """Raise RefusedError where there is a refusal."""
    if found is not None:
        raise RefusedError(found)


def refusal(code: int, status: str, message: str, *details: dict[str, Any]) -> Refusal:
    """A google.rpc.Status as the API sends it."""
    error = {"code": code, "message": message, "status": status, **({"details": list(details)} if details else {})}
    return Refusal(code, {"error": error})


def of_fault(fault: str) -> Refusal:
    """The error of a fault named in `HTTP`."""
    return refusal(*HTTP[fault])


def bad_request(message: str, *details: dict[str, Any]) -> Refusal:
    """400 INVALID_ARGUMENT."""
    return refusal(HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT", message, *details)


def bad_fields(violations: dict[str, str]) -> Refusal:
    """400 for fields that the API does not know or does not take; `violations` maps a field to what is wrong with it."""
    fields = [
        {**({"field": field} if field else {}), "description": description} for field, description in violations.items()
    ]
    message = "\n".join(violations.values())
    return bad_request(message, {"@type": f"{TYPE}BadRequest", "fieldViolations": fields})


def no_key() -> Refusal:
    """403 for a request without a key."""
    message = (
        "Method doesn't allow unregistered callers (callers without established identity)."
        " Please use API Key or other form of API consumer identity to call this API."
    )
    return refusal(HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", message)


def invalid_key() -> Refusal:
    """400 for a key that is not known."""
    info = {
        "@type": f"{TYPE}ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    message = "API key not valid. Please pass a valid API key."
    localized = {"@type": f"{TYPE}LocalizedMessage", "locale": "en-US", "message": message}
    return bad_request(message, info, localized)


def unknown_model(name: str, version: str, method: str) -> Refusal:
    """404 for a model, or a method that it does not have."""
    message = (
        f"models/{name} is not found for API version {version}, or is not supported for {method}."
        " Call ListModels to see the list of available models and their supported methods."
    )
    return refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", message)


def not_found() -> Refusal:
    """404 for a batch that is not there."""
    return refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "Requested entity was not found.")


def no_file(name: str) -> Refusal:
    """403 for a file that is not there, or is another project's."""
    message = f"You do not have permission to access the File {name} or it may not exist."
    return refusal(HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", message)


def over_quota(model: str, quota: Exceeded) -> Refusal:
    """429 with QuotaFailure, Help and RetryInfo. A daily quota carries a short RetryInfo too, as the real one does."""
    message = (
        f"{OVER_QUOTA}\n* Quota exceeded for metric: {quota.metric}, limit: {quota.value}, model: {model}"
        f"\nPlease retry in {quota.retry_s:.9f}s."
    )
    violation = {
        "quotaMetric": quota.metric,
        "quotaId": quota.quota_id,
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": quota.value,
    }
    failure = {"@type": f"{TYPE}QuotaFailure", "violations": [violation]}
    advice = {"@type": f"{TYPE}RetryInfo", "retryDelay": f"{quota.retry_s:.2f}s"}
    return refusal(HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", message, failure, HELP, advice)


def over_batch_quota() -> Refusal:
    """429 for too many batches or enqueued tokens: it has a Help and nothing else (langchain4j#3942)."""
    return refusal(HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", OVER_QUOTA, HELP)
