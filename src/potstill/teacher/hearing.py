"""An answer as it arrives: its text is passed on, its pieces are kept, and are one reply in the end. Pure but for that."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from potstill.files import parse_json
from potstill.teacher.wire import parse_reply, raw_json

Tell = Callable[[str], None]
"""Takes the next stretch of an answer's text."""


class Hearing:
    """The events of one streamed answer (`streamGenerateContent`)."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._events: list[dict[str, Any]] = []
        self.heard = False
        """Whether text was passed on, which nothing can take back."""

    def take(self, event: str) -> None:
        """Take the next event, a JSON document, and pass its text on; what is no event is left out."""
        try:
            parsed = parse_json(event)
        except json.JSONDecodeError:
            return
        if not isinstance(parsed, dict):
            return
        self._events.append(parsed)
        if (reply := parse_reply(event)) is not None and reply.text:
            self.heard = True
            self._tell(reply.text)

    def whole(self) -> str | None:
        """All events as the one generateContent response that they are pieces of; None where none came.

        Of what is counted (tokens) and of what is said at the end (the finish reason) the last word holds.
        """
        if not self._events:
            return None
        whole: dict[str, Any] = {}
        candidate: dict[str, Any] = {}
        parts: list[Any] = []
        for event in self._events:
            whole |= event
            mine: dict[str, Any] = next(iter(event.get("candidates") or ()), {})
            parts += (mine.get("content") or {}).get("parts") or []
            candidate |= mine
        if candidate:
            whole["candidates"] = [{**candidate, "content": {"role": "model", "parts": parts}}]
        return raw_json(whole)
