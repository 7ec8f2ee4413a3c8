"""Answers that must be JSON: checked against the user's JSON Schema, and lists of texts read from them. Pure."""

from __future__ import annotations

import json
from typing import Any

from potstill.files import parse_json
from potstill.generate.sift import Check, Rejection

SHOWN_CHARS = 200
"""How much of a complaint is kept: it may quote the whole answer."""


def schema_check(schema: dict[str, Any]) -> Check:
    """A check that an answer is JSON and follows a schema (JSON Schema, the draft that its `$schema` names)."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    validator = validator_for(schema, default=Draft202012Validator)(schema)

    def check(text: str) -> Rejection | None:
        value = read_json(text)
        if isinstance(value, Rejection):
            return value
        error = best_match(validator.iter_errors(value))
        return None if error is None else Rejection("schema", f"{error.json_path}: {error.message[:SHOWN_CHARS]}")

    return check


def read_json(text: str) -> Any:
    """The JSON value that a text is; a Rejection where it is none."""
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        return Rejection("not JSON", f"{error.msg} (character {error.pos})")


TEXTS = {
    "type": "object",
    "properties": {"questions": {"type": "array", "items": {"type": "string"}}},
    "required": ["questions"],
}
"""The schema in which the teacher gives new questions."""


def read_texts(text: str) -> tuple[str, ...]:
    """The questions in an answer of the schema `TEXTS`; none where it is not of that form."""
    value = read_json(text)
    found = value.get("questions") if isinstance(value, dict) else None
    return tuple(item.strip() for item in found if isinstance(item, str)) if isinstance(found, list) else ()
