"""What must not be kept: key-like strings in a question. Pure."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

HIDDEN = "[not kept: it holds something like a key]"
HASHED = "sha256:"
KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a Google API key", re.compile(r"\bAIza[0-9A-Za-z_-]{30,}")),
    ("an OpenAI-style key", re.compile(r"\bsk-[0-9A-Za-z_-]{16,}")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[0-9A-Za-z]{20,}|github_pat_[0-9A-Za-z_]{20,})")),
    ("an AWS key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a Slack token", re.compile(r"\bxox[abeoprs]-[0-9A-Za-z-]{10,}")),
    ("a JSON web token", re.compile(r"\beyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]+")),
    ("a private key", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("a Hugging Face token", re.compile(r"\bhf_[0-9A-Za-z]{30,}")),
    ("a bearer token", re.compile(r"(?i)\bbearer\s+(?=\S*\d)[0-9A-Za-z._~+/=-]{12,}")),
    ("an HTTP authorization", re.compile(r"(?i)\bauthorization\s*[:=]\s*\S+\s+\S{6,}")),
    ("a password", re.compile(r"(?:密碼|密码|口令|金鑰|密钥|令牌|權杖)\s*(?:是|為|为|=|:|\uff1a)\s*[!-~]{6,}")),
    (
        "a password",
        re.compile(r"(?i)(?:\b|_)(?:password|passwd|pwd|secret|token|api[_-]?key)\s*(?:=|:|\bis\b)\s*\S{6,}"),
    ),
    ("a password in a URL", re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@")),
    ("a card number", re.compile(r"\b(?:\d[ -]?){13,18}\d\b")),
)
TOKEN = re.compile(r"[0-9A-Za-z+/_=-]{24,}")
MIN_BITS = 3.6
"""Bits a character from which a long token with letters and digits counts as random (English words have about 3)."""


def secret_in(text: str) -> str | None:
    """What kind of secret a text seems to hold; None where it holds none. Never the secret itself."""
    for kind, pattern in KINDS:
        if pattern.search(text):
            return kind
    return "a random token" if any(_random(found) for found in TOKEN.findall(text)) else None


def hashed(text: str) -> str:
    """A text's stand-in where questions are not stored."""
    return f"{HASHED}{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _random(token: str) -> bool:
    mixed = any(sign.isdigit() for sign in token) and any(sign.isalpha() for sign in token)
    counts = Counter(token)
    bits = -sum(count / len(token) * math.log2(count / len(token)) for count in counts.values())
    return mixed and bits >= MIN_BITS
