"""Keep or reject an answer, with the reason. Pure: it runs on the ledger and can be rerun for nothing."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.config import FilterConfig
from potstill.records import Sample, content_id
from potstill.teacher.wire import REFUSED

TRUNCATED = "MAX_TOKENS"
LOOP_MIN_CHARS = 40
LOOP_MAX_PERIOD = 200


@dataclass(frozen=True)
class Kept:
    """The answer goes into the dataset."""


@dataclass(frozen=True)
class Rejection:
    """The answer is left out: the reason in a word, and what was seen."""

    reason: str
    detail: str = ""


class Sieve:
    """The filters of a config. It remembers what it has kept of the current prompt, to find duplicates."""

    def __init__(self, filters: FilterConfig) -> None:
        self._filters = filters
        self._prompt: str | None = None
        self._kept: set[str] = set()

    def judge(self, sample: Sample) -> Kept | Rejection:
        """Keep or reject the next sample."""
        verdict = judge_text(sample.messages[-1].content, sample.finish_reason, self._filters)
        if isinstance(verdict, Rejection) or not self._filters.drop_duplicates:
            return verdict
        if sample.prompt_id != self._prompt:
            self._prompt, self._kept = sample.prompt_id, set()
        name = content_id([sample.role, sample.prompt_id, sample.messages[-1].content.split()])
        if name in self._kept:
            return Rejection("duplicate", "the same answer to the same prompt in the same role")
        self._kept.add(name)
        return verdict


def judge_text(text: str, finish_reason: str, filters: FilterConfig) -> Kept | Rejection:
    """Judge one answer by itself."""
    length = len(text.strip())
    if finish_reason in REFUSED:
        return Rejection("refused", finish_reason)
    if finish_reason == TRUNCATED and not filters.keep_truncated:
        return Rejection("truncated", "the answer hit generate.max_output_tokens")
    if length < max(1, filters.min_chars):
        return Rejection("too short" if length else "empty", f"{length} characters, {finish_reason}")
    if filters.max_chars is not None and length > filters.max_chars:
        return Rejection("too long", f"{length} characters")
    if (share := repeated_share(text)) > filters.max_repetition:
        return Rejection("repetition", f"{share:.0%} of it is one stretch again and again")
    return Kept()


def repeated_share(text: str) -> float:
    """Share of a text that is its own ending repeated back to back: 0 without a loop, near 1 for nothing but one."""
    stripped = text.rstrip()
    if len(stripped) < LOOP_MIN_CHARS:
        return 0.0
    longest = 0
    for period in range(1, min(LOOP_MAX_PERIOD, len(stripped) // 3) + 1):
        run = period
        while run < len(stripped) and stripped[-run - 1] == stripped[-run - 1 + period]:
            run += 1
        if run >= 3 * period:
            longest = max(longest, run)
    return longest / len(stripped)
