"""Keep or reject an answer, with the reason. Pure: it runs on the ledger and can be rerun for nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from potstill.config import FilterConfig
from potstill.generate.languages import fits, language_of
from potstill.generate.neighbours import similarity
from potstill.generate.phrases import leak_in, refusal_in
from potstill.records import Sample
from potstill.teacher.wire import REFUSED
from potstill.wording import counted

TRUNCATED = "MAX_TOKENS"
NOT_THE_BEST = "not the best"
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


@dataclass(frozen=True)
class Score:
    """What a judge said of an answer: the share of the rubric that it meets (0..1), and why."""

    share: float
    why: str


Verdict = Kept | Rejection
Check = Callable[[str], Rejection | None]
"""Looks at an answer's text; a Rejection where something is wrong with it."""
Judged = Callable[[Sample], Score | Rejection]
"""The judge's word on a sample, or that there is none."""


@dataclass(frozen=True)
class Gauge:
    """What answers are measured by. `alike_prompt`: the earlier prompt that a prompt's id is near to, if any."""

    filters: FilterConfig
    form: Check | None = None
    judged: Judged | None = None
    min_score: float = 0.0
    alike_prompt: Callable[[str], str | None] | None = None


def sift(samples: Iterable[Sample], gauge: Gauge) -> Iterator[tuple[Sample, Verdict]]:
    """Each sample with its verdict, in order.

    Samples of one prompt in one role must stand in a row: only these are held together, to find duplicates and the best.
    """
    for _, group in groupby(samples, key=lambda sample: (sample.prompt_id, sample.role)):
        yield from _sift_group(list(group), gauge)


def _sift_group(group: list[Sample], gauge: Gauge) -> Iterator[tuple[Sample, Verdict]]:
    kept: list[Sample] = []
    verdicts: list[Verdict] = []
    for sample in group:
        verdict = judge_sample(sample, gauge)
        if isinstance(verdict, Kept):
            verdict = _against(sample, kept, gauge.filters)
        if isinstance(verdict, Kept):
            kept.append(sample)
        verdicts.append(verdict)
    return zip(group, _by_score(group, verdicts, gauge), strict=True)


def judge_sample(sample: Sample, gauge: Gauge) -> Verdict:
    """Judge a sample by itself: each of its answers, and the first check that finds something decides."""
    for text in answers_of(sample):
        for check in (_length, _form, _language, _phrases):
            if (found := check(text, sample, gauge)) is not None:
                return found
    return _prompt(sample, gauge) or Kept()


def answers_of(sample: Sample) -> list[str]:
    """The answers of a chat, in order."""
    return [message.content for message in sample.messages if message.role == "assistant"]


def _length(text: str, sample: Sample, gauge: Gauge) -> Rejection | None:
    verdict = judge_text(text, sample.finish_reason, gauge.filters)
    return verdict if isinstance(verdict, Rejection) else None


def _form(text: str, _: Sample, gauge: Gauge) -> Rejection | None:
    return None if gauge.form is None else gauge.form(text)


def _language(text: str, _: Sample, gauge: Gauge) -> Rejection | None:
    wanted = gauge.filters.languages
    if not wanted:
        return None
    found = language_of(text)
    return None if any(fits(found, name) for name in wanted) else Rejection("language", f"{found}, not {_or(wanted)}")


def _phrases(text: str, sample: Sample, gauge: Gauge) -> Rejection | None:
    if gauge.filters.refusals and (words := refusal_in(text)) is not None:
        return Rejection("refusal", words)
    if gauge.filters.leaks and (words := leak_in(text, _system_of(sample))) is not None:
        return Rejection("leaked instructions", words)
    return None


def _prompt(sample: Sample, gauge: Gauge) -> Rejection | None:
    earlier = gauge.alike_prompt(sample.prompt_id) if gauge.alike_prompt is not None else None
    return None if earlier is None else Rejection("near-duplicate prompt", f"like {earlier}")


def judge_text(text: str, finish_reason: str, filters: FilterConfig) -> Verdict:
    """Judge an answer by its end, its length and its repetitions."""
    length = len(text.strip())
    if finish_reason in REFUSED:
        return Rejection("refused", finish_reason)
    if finish_reason == TRUNCATED and not filters.keep_truncated:
        return Rejection("truncated", "the answer hit generate.max_output_tokens")
    if length < max(1, filters.min_chars):
        return Rejection("too short" if length else "empty", f"{counted(length, 'character')}, {finish_reason}")
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


def _against(sample: Sample, kept: list[Sample], filters: FilterConfig) -> Verdict:
    """Compare with those kept of the same prompt in the same role, by the first answer: what follows hangs on it."""
    text = answers_of(sample)[0]
    for other in kept:
        before = answers_of(other)[0]
        if filters.drop_duplicates and text.split() == before.split():
            return Rejection("duplicate", f"the same answer as sample {other.sample}")
        if filters.near_duplicates is not None and (alike := similarity(text, before)) >= filters.near_duplicates:
            return Rejection("near-duplicate", f"{alike:.2f} like sample {other.sample}")
    return Kept()


def _by_score(group: list[Sample], verdicts: list[Verdict], gauge: Gauge) -> list[Verdict]:
    """What the judge says of the answers that are left, and which of these are the best."""
    shares: dict[int, float] = {}
    for place, (sample, verdict) in enumerate(zip(group, verdicts, strict=True)):
        if isinstance(verdict, Rejection):
            continue
        score = gauge.judged(sample) if gauge.judged is not None else Score(0.0, "")
        if isinstance(score, Rejection):
            verdicts[place] = score
        elif gauge.judged is not None and score.share < gauge.min_score:
            verdicts[place] = Rejection("judge", f"{score.share:.2f} of the rubric: {score.why}")
        else:
            shares[place] = score.share
    if gauge.filters.keep_best is not None:
        ranked = sorted(shares, key=lambda place: (-shares[place], place))
        for place in ranked[gauge.filters.keep_best :]:
            verdicts[place] = Rejection(NOT_THE_BEST, f"score {shares[place]:.2f}")
    return verdicts


def _system_of(sample: Sample) -> str:
    return "\n".join(message.content for message in sample.messages if message.role == "system")


def _or(names: tuple[str, ...]) -> str:
    return " or ".join(names)
