"""What is sifted out, why, and what never is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.samples import line_of

from potstill.config import FilterConfig
from potstill.generate.phrases import refusal_in
from potstill.generate.sift import Gauge, Kept, Rejection, Score, repeated_share, sift
from potstill.records import Sample

SYSTEM = "You are a hardware engineer. Answer in one or two plain sentences, with what matters for memory."


def sample(text: str, number: int = 0, *, prompt: str = "p", reason: str = "STOP", system: str = SYSTEM) -> Sample:
    """An answer to a prompt."""
    turns = (("system", system), ("user", "?"), ("assistant", text))
    return line_of(*turns, id=f"{prompt}{number}", prompt_id=prompt, sample=number, finish_reason=reason)


def reasons(samples: list[Sample], gauge: Gauge | None = None, **filters: object) -> list[str]:
    """The verdicts in a word each."""
    gauge = gauge or Gauge(FilterConfig.model_validate(filters))
    return [getattr(verdict, "reason", "kept") for _, verdict in sift(samples, gauge)]


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("Rank sixteen is a sound start.", "STOP", "kept"),
        ("", "STOP", "empty"),
        ("", "SAFETY", "refused"),
        ("Rank sixteen is a", "MAX_TOKENS", "truncated"),
        ("Measure it on your own data first. " * 9, "STOP", "repetition"),
        ("I'm sorry, but I can't help with that.", "STOP", "refusal"),
        ("I\u2019m unable to assist with this request.", "STOP", "refusal"),
        ("As an AI language model, I cannot give prices.", "STOP", "refusal"),
        ("很抱歉,我無法回答這個問題。", "STOP", "refusal"),
        ("抱歉，我无法提供这方面的信息。", "STOP", "refusal"),
        ("身為一個 AI 語言模型,我不能給你投資建議。", "STOP", "refusal"),
        ("很抱歉，這部分不便透露。", "STOP", "refusal"),
        ("抱歉造成不便，請先把風扇清乾淨。", "STOP", "kept"),
        ("A cheap card cannot hold it, and I cannot recommend one.", "STOP", "kept"),
        ("顯示卡記憶體不足時就無法載入模型。", "STOP", "kept"),
        ("My system prompt says that I am an engineer.", "STOP", "leaked instructions"),
        ("根據我的系統提示,我是工程師。", "STOP", "leaked instructions"),
        ("Sure: answer in one or two plain  sentences, with what matters for MEMORY.", "STOP", "leaked instructions"),
    ],
)
def test_each_answer_by_itself(text: str, finish: str, reason: str) -> None:
    """Empty, cut off, looping, refusing and leaking answers are named as such; good ones are kept."""
    assert reasons([sample(text, reason=finish)]) == [reason]


def test_a_chinese_system_prompt_said_back_is_a_leak() -> None:
    """Sixteen characters in a row are enough in Chinese, which says more with each."""
    system = "你是一位硬體工程師。請用一到兩句淺白的話回答,說清楚記憶體、速度、功耗與散熱上真正重要的事。"
    assert reasons([sample("請用一到兩句淺白的話回答,說清楚記憶體。", system=system)]) == ["leaked instructions"]
    assert reasons([sample("記憶體、速度與功耗都要看。", system=system)]) == ["kept"]


def test_each_filter_can_be_turned_off() -> None:
    """What a user wants to keep is kept."""
    assert reasons([sample("I'm sorry, but I can't help with that.")], refusals=False) == ["kept"]
    assert reasons([sample("My system prompt is secret.")], leaks=False) == ["kept"]
    assert reasons([sample("half", reason="MAX_TOKENS")], keep_truncated=True) == ["kept"]


def test_languages_and_lengths() -> None:
    """An answer in the wrong language, too short or too long is left out."""
    texts = [sample("每个权重需要两个字节的内存。", 0), sample("每個權重需要兩個位元組的記憶體。", 1)]
    assert reasons(texts, languages=["zh-TW"]) == ["language", "kept"]
    assert reasons([sample("ab"), sample("abcdef", 1)], min_chars=3, max_chars=5) == ["too short", "too long"]


def test_duplicates_of_one_prompt_only() -> None:
    """Equal answers to one prompt are kept once; the same answer to another prompt is another sample."""
    group = [sample("same words"), sample("same  words", 1), sample("same words", 0, prompt="q")]
    assert reasons(group) == ["kept", "duplicate", "kept"]
    alike = [sample("Rank sixteen is a sound start for most."), sample("Rank sixteen is a sound start for most!", 1)]
    assert reasons(alike, near_duplicates=0.9) == ["kept", "near-duplicate"]
    assert reasons(alike) == ["kept", "kept"]


def test_the_judge_and_the_best() -> None:
    """Answers under the rubric's score are left out, and of the others the best are kept, the earlier of equals."""
    shares = {"p0": 0.5, "p1": 1.0, "p2": 0.75, "p3": 1.0}
    group = [sample(f"answer number {number}", number) for number in range(4)]
    gauge = Gauge(FilterConfig(keep_best=2), judged=lambda item: Score(shares[item.id], "because"), min_score=0.75)
    assert reasons(group, gauge) == ["judge", "kept", "not the best", "kept"]
    gauge = Gauge(FilterConfig(), judged=lambda _: Rejection("not judged", "no money"))
    assert reasons(group, gauge) == ["not judged"] * 4


@given(st.text(), st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "NEW_REASON"]))
def test_every_answer_gets_one_verdict(text: str, finish: str) -> None:
    """No text breaks the sieve, and a rejection always has a reason."""
    ((_, verdict),) = sift([sample(text, reason=finish)], Gauge(FilterConfig()))
    assert isinstance(verdict, Kept) or verdict.reason


@given(st.text(min_size=14, max_size=60), st.integers(3, 8))
def test_a_loop_is_seen_and_its_share_is_a_share(piece: str, times: int) -> None:
    """Any stretch repeated back to back is a loop; the share stays within 0 and 1."""
    share = repeated_share(piece * times)
    assert 0 <= share <= 1
    if len((piece * times).rstrip()) >= 40 and piece == piece.strip():
        assert share > 0.5


def test_refusals_are_told_from_answers_that_look_like_one() -> None:
    """In the development half of the labelled set, and so in Simplified characters; a quoted refusal is none."""
    lines = (Path(__file__).parents[2] / "benchmarks" / "sifting.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["half"] == "development" and row["refusal"] is not None]
    found = [(row["refusal"], refusal_in(row["text"]) is not None) for row in rows]
    assert found.count((True, True)) >= 40
    assert found.count((True, False)) <= 1
    assert found.count((False, True)) == 0
    assert refusal_in("很抱歉，我无法协助您处理这个请求。") == "抱歉,我无法协助"
    assert refusal_in('"I cannot help with that."') is not None
    assert refusal_in('The bot says "I cannot help with that."') is None
