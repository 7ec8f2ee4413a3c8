"""The token estimate: known texts, both languages, and the properties that its callers rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.pricing.tokens import estimate_tokens

COUNTED = [
    ("How much memory does a language model need on a graphics card?", 13),
    ("一張顯示卡要多少記憶體才能微調一個語言模型？", 14),
    ('{"id": "gemini-3.5-flash-lite", "input": 0.30, "output": 2.50, "as_of": "2026-10-14"}', 50),
    ("def price(self, model: str, service: str, on: date) -> Price:\n    return self.rows[model]\n", 30),
    ("LoRA adapters 只訓練低秩矩陣，因此記憶體只需要全參數微調的一小部分。", 22),
]
"""Texts, and how many tokens the vocabulary of Gemma 3 makes of them (counted once with its tokenizer)."""


@pytest.mark.parametrize(("text", "tokens"), COUNTED)
def test_within_a_third_of_a_real_tokenizer(text: str, tokens: int) -> None:
    """English, Traditional Chinese, JSON, code and a mixture: a single text is off by a third at most."""
    assert abs(estimate_tokens(text) / tokens - 1) <= 0.33


def test_all_of_them_together_are_within_a_tenth() -> None:
    """Errors of single texts cancel out: what a run is billed for is their sum."""
    counted = sum(tokens for _, tokens in COUNTED)
    assert abs(sum(estimate_tokens(text) for text, _ in COUNTED) / counted - 1) <= 0.1


@given(st.text(max_size=200), st.text(max_size=50))
def test_a_longer_text_never_counts_less(text: str, more: str) -> None:
    """Cutting the end off a text, as a token limit does, never raises its count; nothing is negative."""
    assert 0 <= estimate_tokens(text) <= estimate_tokens(text + more)


def test_nothing_is_nothing() -> None:
    """An empty text has no tokens."""
    assert estimate_tokens("") == 0
