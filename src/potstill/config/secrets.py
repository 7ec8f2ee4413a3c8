"""Keys: from the environment only, apart from the config, so that a config can be printed and stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import SecretStr

KEY_VARIABLES = {"gemini": ("GOOGLE_API_KEY", "GEMINI_API_KEY"), "openai": ("OPENAI_API_KEY",)}
"""Where each provider's key is looked for, in its SDK's own order."""
MIN_SECRET_CHARS = 8
"""Shorter texts are no keys (the emulator takes any), and blanking them would garble every line."""


@dataclass(frozen=True)
class Secrets:
    """Keys from the environment; never part of the config, never printed.

    `unused_keys` belong to other providers, or are outranked: kept only so that they can be blanked too.
    """

    teacher_key: SecretStr | None = None
    teacher_key_variable: str | None = None
    serve_keys: tuple[SecretStr, ...] = ()
    serve_admin_keys: tuple[SecretStr, ...] = ()
    student_key: SecretStr | None = None
    unused_keys: tuple[SecretStr, ...] = ()
    hub_token: SecretStr | None = None
    qdrant_key: SecretStr | None = None

    def redact(self, text: str) -> str:
        """Blank every secret in a text that is about to be shown."""
        own = (*self.serve_keys, *self.serve_admin_keys, *self.unused_keys)
        for secret in (self.teacher_key, self.student_key, self.hub_token, self.qdrant_key, *own):
            if secret is not None and len(secret.get_secret_value()) >= MIN_SECRET_CHARS:
                text = text.replace(secret.get_secret_value(), "[redacted]")
        return text


def read_secrets(environ: Mapping[str, str] | None = None, provider: str = "gemini") -> Secrets:
    """The keys in the environment: the teacher's (GOOGLE_API_KEY wins, as in the SDK), the servers', the hub's, Qdrant's."""
    environ = os.environ if environ is None else environ
    variable = next((name for name in KEY_VARIABLES[provider] if environ.get(name)), None)
    unused = [environ.get(name) for names in KEY_VARIABLES.values() for name in names if name != variable]
    return Secrets(
        teacher_key=SecretStr(environ[variable]) if variable else None,
        teacher_key_variable=variable,
        serve_keys=_keys(environ.get("POTSTILL_SERVE_API_KEYS", "")),
        serve_admin_keys=_keys(environ.get("POTSTILL_SERVE_ADMIN_KEYS", "")),
        student_key=_one(environ, "POTSTILL_STUDENT_API_KEY"),
        unused_keys=tuple(SecretStr(key) for key in unused if key),
        hub_token=_one(environ, "HF_TOKEN"),
        qdrant_key=_one(environ, "POTSTILL_QDRANT_API_KEY"),
    )


def _one(environ: Mapping[str, str], name: str) -> SecretStr | None:
    return SecretStr(environ[name]) if environ.get(name) else None


def _keys(text: str) -> tuple[SecretStr, ...]:
    return tuple(SecretStr(key.strip()) for key in text.split(",") if key.strip())
