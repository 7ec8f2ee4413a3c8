"""What stands on disk: canonical bytes, content ids, money and usage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from potstill.records import Message, Sample, Usage, canonical_json, content_id, text_sha

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
COUNTS = st.builds(
    Usage,
    **{name: st.integers(0, 10**9) for name in ("input_tokens", "output_tokens", "thinking_tokens", "cached_tokens")},
)


def sample(**changes: Any) -> Sample:
    """A dataset line, with some fields changed."""
    values: dict[str, Any] = {
        "id": "c1:0",
        "messages": (Message(role="user", content="q"), Message(role="assistant", content="a")),
        "role": "hardware-expert",
        "prompt_id": "c1:1",
        "sample": 0,
        "model": "m",
        "finish_reason": "STOP",
        "usage": Usage(input_tokens=3),
        "cost_usd": Decimal("0.0006375"),
        "prompt_sha": text_sha("q"),
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    return Sample(**(values | changes))


@given(JSON)
def test_canonical_bytes_are_json_and_stable(value: Any) -> None:
    """The canonical form reads back as the value, and writing that again gives the same bytes."""
    written = canonical_json(value)
    assert canonical_json(json.loads(written)) == written


@given(st.dictionaries(st.text(), st.integers(), min_size=2, max_size=6))
def test_an_id_does_not_depend_on_key_order(value: dict[str, int]) -> None:
    """The same mapping in another order has the same id."""
    assert content_id(value) == content_id(dict(reversed(value.items())))


@given(st.text(), st.text())
def test_different_content_has_different_ids(first: str, second: str) -> None:
    """Ids are equal just where the content is."""
    assert (content_id([first]) == content_id([second])) == (first == second)


def test_an_id_is_pinned() -> None:
    """The scheme of ids does not change unseen: ledgers and datasets on disk are named by it."""
    assert content_id({"prompt": "記憶體"}) == "c1:" + text_sha('{"prompt":"記憶體"}')[:32]


def test_nan_has_no_id() -> None:
    """A value that JSON cannot hold is refused."""
    with pytest.raises(ValueError, match="JSON"):
        content_id(float("nan"))


@given(COUNTS, COUNTS)
def test_usage_adds_up(left: Usage, right: Usage) -> None:
    """Adding usages adds each kind of token, and order does not matter."""
    total = left + right
    assert total == right + left
    for name in Usage.model_fields:
        assert getattr(total, name) == getattr(left, name) + getattr(right, name)


@given(st.decimals(0, 10**6, places=12))
def test_money_is_a_plain_decimal_on_disk(cost: Decimal) -> None:
    """Dollars are written as a decimal string without exponent, and read back to the very same value."""
    line = sample(cost_usd=cost).to_line()
    text = json.loads(line)["cost_usd"]
    assert isinstance(text, str)
    assert "E" not in text.upper()
    assert Sample.model_validate_json(line).cost_usd == cost


@given(st.text())
def test_a_line_is_one_line(text: str) -> None:
    """Whatever an answer holds, its record is one line that reads back the same."""
    made = sample(messages=(Message(role="user", content="q"), Message(role="assistant", content=text)))
    line = made.to_line()
    assert line.count("\n") == 1
    assert Sample.model_validate_json(line) == made


def test_a_dataset_line_has_the_contracts_fields() -> None:
    """The names of a dataset line are those that scripts are written against."""
    assert list(json.loads(sample().to_line())) == [
        "id", "messages", "role", "prompt_id", "sample", "model", "finish_reason", "usage", "cost_usd", "prompt_sha",
        "created_at",
    ]  # fmt: skip


def test_a_record_is_frozen_and_closed() -> None:
    """A record cannot be changed, and a key that it does not know is an error."""
    with pytest.raises(ValidationError):
        sample().role = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        sample(unknown=1)
