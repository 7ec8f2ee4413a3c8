"""Dataset lines for tests, of which a test names only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from potstill.records import Message, Sample, Usage


def line_of(*turns: tuple[str, str], **changes: Any) -> Sample:
    """One answer of a teacher, from (role of the turn, text) and what else of it matters."""
    facts: dict[str, Any] = {
        "id": "c1:0",
        "role": "expert",
        "prompt_id": "p",
        "sample": 0,
        "model": "teacher",
        "finish_reason": "STOP",
        "usage": Usage(),
        "cost_usd": Decimal("0.001"),
        "prompt_sha": "0",
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    messages = tuple(Message.model_validate({"role": role, "content": text}) for role, text in turns)
    return Sample(messages=messages, **{**facts, **changes})
