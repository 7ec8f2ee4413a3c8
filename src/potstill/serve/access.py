"""Who may ask, for what, and how often: keys, scopes, and a bucket of requests for each key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from dataclasses import dataclass, field
from typing import Literal

from potstill.serve.errors import ApiError
from potstill.wording import counted

Scope = Literal["local", "query", "admin"]


@dataclass(frozen=True)
class Keys:
    """The keys that are accepted. Both kinds may ask; only an admin key may change what is served."""

    query: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.query or self.admin)


@dataclass(frozen=True)
class Caller:
    """Who asks. `tenant` is a digest of the key, never the key; None where no key is needed."""

    scope: Scope
    tenant: str | None


class Gate:
    """Tells callers apart by their keys. Every key is compared, in constant time.

    Without query keys, who is on this machine needs none; beyond it nobody gets in without one.
    """

    def __init__(self, keys: Keys, *, loopback: bool) -> None:
        self._keys: list[tuple[bytes, Scope]] = [(key.encode(), "query") for key in keys.query]
        self._keys += [(key.encode(), "admin") for key in keys.admin]
        self._open = loopback and not keys.query

    def admit(self, authorization: str, *, basic: bool) -> Caller:
        """The caller of a request; raises ApiError (401). `basic` also takes the key as a browser's password."""
        token = _token(authorization, basic=basic)
        found: Scope | None = None
        for key, scope in self._keys:
            if hmac.compare_digest(token, key):
                found = scope
        if found is not None:
            return Caller(found, f"key-{hashlib.sha256(token).hexdigest()[:32]}")
        if self._open:
            return Caller("local", None)
        challenge = 'Basic realm="potstill"' if basic else "Bearer"
        headers = {"www-authenticate": challenge}
        raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=headers)


def need_admin(caller: Caller) -> None:
    """Refuse everybody but an admin; raises ApiError (403)."""
    if caller.scope != "admin":
        message = "this needs an admin key; the server takes them from POTSTILL_SERVE_ADMIN_KEYS"
        raise ApiError(403, message, code="insufficient_scope")


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class Rates:
    """A token bucket for each tenant: bursts up to a minute's worth, then a steady rate."""

    per_minute: int | None
    _buckets: dict[str | None, _Bucket] = field(default_factory=dict)

    def take(self, tenant: str | None, now: float) -> dict[str, str]:
        """Count a request made at `now` (seconds, monotonic); the headers that tell what is left.

        Raises ApiError (429) with `Retry-After` where nothing is left.
        """
        if self.per_minute is None:
            return {}
        bucket = self._buckets.setdefault(tenant, _Bucket(self.per_minute, now))
        bucket.tokens = min(self.per_minute, bucket.tokens + (now - bucket.at) * self.per_minute / 60)
        bucket.at = now
        if bucket.tokens < 1:
            wait = math.ceil((1 - bucket.tokens) * 60 / self.per_minute)
            message = f"more than {counted(self.per_minute, 'request')} a minute"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_s=max(1, wait))
        bucket.tokens -= 1
        return {
            "x-ratelimit-limit-requests": str(self.per_minute),
            "x-ratelimit-remaining-requests": str(int(bucket.tokens)),
        }


def _token(authorization: str, *, basic: bool) -> bytes:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode("latin-1", "replace")
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""
