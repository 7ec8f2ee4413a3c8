"""Which transport a config asks for, and what each of them cannot do."""

from __future__ import annotations

import re

from potstill.config import KEY_VARIABLES, Secrets, TeacherConfig
from potstill.errors import ConfigError, KeyRefusedError
from potstill.teacher.transport import GeminiTransport, Transport
from potstill.teacher.transport_legacy import LegacyTransport
from potstill.teacher.transport_openai import OpenAITransport

THOUGHTLESS = re.compile(r"gemini-1\.|gemini-2\.0-|gemini-2\.5-flash-lite|gemma-")
"""Models that do not think unless they are asked to."""


def check_client(teacher: TeacherConfig) -> None:
    """Raise ConfigError for what the chosen client cannot do safely; needs no key."""
    if teacher.provider == "openai":
        _check_openai(teacher)
    elif teacher.sdk == "google-generativeai":
        _check_legacy(teacher)


def check_teacher(teacher: TeacherConfig, secrets: Secrets) -> None:
    """Raise as `check_client` does, and KeyRefusedError where there is no key."""
    check_client(teacher)
    if secrets.teacher_key is None and not (teacher.provider == "openai" and teacher.base_url):
        first, *others = reversed(KEY_VARIABLES[teacher.provider])
        message = f"no API key: set {first}{''.join(f' (or {name})' for name in others)} in the environment"
        hint = "an emulator (`potstill emulator`) takes any text as a key"
        raise KeyRefusedError(message, hint=hint if teacher.provider == "gemini" else None)


def connect(teacher: TeacherConfig, secrets: Secrets) -> Transport:
    """The transport of a config; raises as `check_teacher` does, and MachineError where its package is missing."""
    check_teacher(teacher, secrets)
    key = secrets.teacher_key
    if teacher.provider == "openai":
        return OpenAITransport(teacher, key)
    assert key is not None, "check_teacher has seen to it"
    return LegacyTransport(teacher, key) if teacher.sdk == "google-generativeai" else GeminiTransport(teacher, key)


def _check_openai(teacher: TeacherConfig) -> None:
    if teacher.sdk != "google-genai":
        message = f"teacher.sdk: {teacher.sdk} speaks to Gemini; teacher.provider: openai has a client of its own"
        raise ConfigError(message, hint="leave teacher.sdk out")
    if teacher.service != "standard":
        message = f"teacher.service: {teacher.service} is Gemini's; teacher.provider: openai has standard only"
        raise ConfigError(message, hint="use --set teacher.service=standard")
    if teacher.thinking_budget:
        message = "teacher.thinking_budget cannot be sent with teacher.provider: openai"
        raise ConfigError(message, hint="set it to 0: reasoning counts against generate.max_output_tokens there")


def _check_legacy(teacher: TeacherConfig) -> None:
    """What google-generativeai cannot send: a service level, a batch, a thinking budget (not even 0)."""
    sdk = f"teacher.sdk: {teacher.sdk}"
    hint = "use teacher.sdk: google-genai"
    if teacher.service != "standard":
        message = f"{sdk} has no {teacher.service} service"
        raise ConfigError(message, hint=hint)
    if teacher.thinking_budget:
        message = f"{sdk} cannot send teacher.thinking_budget"
        raise ConfigError(message, hint=hint)
    if not THOUGHTLESS.match(teacher.model.removeprefix("models/")):
        message = f"{sdk} can neither bound nor count the thinking of {teacher.model}, which is billed"
        raise ConfigError(message, hint=f"{hint}, or a model that does not think, e.g. gemini-2.5-flash-lite")
