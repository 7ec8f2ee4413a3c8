"""English, Traditional and Simplified Chinese told apart by their characters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.generate.languages import fits, language_of
from potstill.prompts import load_roles, shipped_roles


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Plan two bytes of memory for each weight.", "en"),
        ("每個權重需要兩個位元組的記憶體。", "zh-TW"),
        ("每个权重需要两个字节的内存。", "zh-CN"),
        ("用 LoRA 微調 Llama-3.2-1B 時,rank 設 16、alpha 設 32,只訓練 q_proj 與 v_proj", "zh-TW"),
        ("用 LoRA 微调 Llama-3.2-1B 时,rank 设 16", "zh-CN"),
        ("你好", "zh"),
        ("The word 顯示卡 means graphics card.", "en"),
        ("メモリはどれくらい必要ですか。", "other"),
        ("메모리가 얼마나 필요합니까?", "other"),
        ("Сколько нужно памяти?", "other"),
        ("42 / 7 = 6", "none"),
        ("", "none"),
    ],
)
def test_languages(text: str, language: str) -> None:
    """Each text is told by its characters, technical terms inside or not."""
    assert language_of(text) == language


@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_the_shipped_roles_are_in_their_language(language: str) -> None:
    """Every role's system prompt is in the language under which it stands."""
    assert {language_of(role.system) for role in load_roles(shipped_roles(), language)} == {language}


def test_undecided_chinese_fits_both_scripts_and_no_words_fit_all() -> None:
    """A text that says nothing about its script is no reason to reject it; the other script is."""
    assert fits("zh", "zh-TW")
    assert fits("zh", "zh-CN")
    assert not fits("zh", "en")
    assert not fits("zh-CN", "zh-TW")
    assert fits("none", "en")


@given(st.text())
def test_any_text_has_one(text: str) -> None:
    """No text breaks it, and the answer is one of the six."""
    assert language_of(text) in {"en", "zh-TW", "zh-CN", "zh", "other", "none"}
