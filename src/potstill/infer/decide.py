"""What to do with a question, as pure decisions: each names what was decided, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from potstill.files import parse_json
from potstill.records import Familiar, RouterRule
from potstill.student.answers import StudentAnswer

Mode = Literal["always", "uncertain", "never"]
Decision = Literal["merge", "select", "verify"]

SCHEMAS: dict[Decision, dict[str, Any] | None] = {
    "merge": None,
    "select": {"type": "object", "properties": {"best": {"type": "integer"}}, "required": ["best"]},
    "verify": {"type": "object", "properties": {"fits": {"type": "boolean"}}, "required": ["fits"]},
}
"""The form in which Gemini answers; None: plain text."""


@dataclass(frozen=True)
class Policy:
    """When Gemini is asked. `threshold` is the mean log-probability from which a student's answer stands alone.

    With `familiar`, the question must also be near what the student was taught; `alone` is the threshold where that
    cannot be told.
    """

    mode: Mode
    threshold: float | None
    reason: str
    familiar: Familiar | None = None
    alone: float | None = None


@dataclass(frozen=True)
class Nearness:
    """The cosine of a question to the nearest training question. Without one, `why` says why.

    `foreign`: because the encoder cannot read the question.
    """

    cosine: float | None = None
    why: str = ""
    foreign: bool = False


@dataclass(frozen=True)
class TakeStudent:
    """Serve a student's answer without Gemini. `whole` is False where a part of the rule could not be looked at."""

    answer: StudentAnswer
    reason: str
    whole: bool = True


@dataclass(frozen=True)
class AskTeacher:
    """Ask Gemini about these candidates, best first; without candidates it answers the question alone."""

    candidates: tuple[StudentAnswer, ...]
    reason: str


@dataclass(frozen=True)
class Chosen:
    """What Gemini's reply means: this text, or None where it must answer alone."""

    text: str | None
    reason: str


def policy(decide: Mode | None, rule: RouterRule | None) -> Policy:
    """When Gemini is asked; unset, a verdict's threshold makes it `uncertain`, and without one it is `always`."""
    threshold = rule.threshold if rule else None
    alone = rule.alone.threshold if rule and rule.alone else None
    mode: Mode = decide or ("always" if threshold is None else "uncertain")
    reason = f"decide {mode}"
    if decide is None:
        reason += ", as no verdict has a threshold" if threshold is None else ", as the verdict has a threshold"
    return Policy(mode, threshold, reason, rule.familiar if rule else None, alone)


def before_students(policy: Policy, near: Nearness) -> AskTeacher | None:
    """Gemini alone for a question that is foreign to the student; None where it is not, or where that cannot be told.

    The student is not even asked: its candidates would make Gemini's prompt longer and no better.
    """
    assert policy.familiar is not None
    least = policy.familiar.least_cosine
    if near.foreign:
        return AskTeacher((), f"foreign to the student: {near.why}")
    if near.cosine is not None and near.cosine < least:
        return AskTeacher(
            (), f"foreign to the student: nearest training question at cosine {near.cosine:.3f} < {least:.3f}"
        )
    return None


def after_students(
    policy: Policy, answers: Sequence[StudentAnswer], near: Nearness | None = None
) -> TakeStudent | AskTeacher:
    """Whether the best student answer stands alone, or Gemini is asked, about a question that is not foreign."""
    ranked = ranking(answers)
    if not ranked:
        return AskTeacher((), "no student answered")
    best = ranked[0]
    score = "unknown" if best.mean_logprob is None else f"{best.mean_logprob:.3f}"
    if policy.mode == "never":
        return TakeStudent(best, f"{policy.reason}; mean log-probability {score}")
    if policy.mode == "always":
        return AskTeacher(ranked, policy.reason)
    whole = policy.familiar is None or (near is not None and near.cosine is not None)
    threshold = policy.threshold if whole else policy.alone
    beside = (
        ""
        if near is None
        else f", nearest training question at cosine {near.cosine:.3f}"
        if whole
        else (f", by log-probability alone: {near.why}")
    )
    if (doubt := _doubt(threshold, best)) is not None:
        return AskTeacher(ranked, doubt + beside)
    return TakeStudent(best, f"mean log-probability {score} >= {threshold:.3f}{beside}", whole)


def _doubt(threshold: float | None, best: StudentAnswer) -> str | None:
    """Why the best student answer does not stand alone."""
    if threshold is None:
        return "no verdict has a threshold"
    if best.mean_logprob is None:
        return "the student's engine gives no log-probabilities"
    if best.finish_reason != "stop":
        return "the student's answer was cut off"
    if best.mean_logprob < threshold:
        return f"mean log-probability {best.mean_logprob:.3f} < {threshold:.3f}"
    return None


def ranking(answers: Sequence[StudentAnswer]) -> tuple[StudentAnswer, ...]:
    """Non-empty answers, best first: whole before cut off, then by mean log-probability; unknown ones last."""

    def rank(answer: StudentAnswer) -> tuple[bool, bool, float]:
        return (
            answer.finish_reason != "stop",
            answer.mean_logprob is None,
            -(answer.mean_logprob if answer.mean_logprob is not None else 0.0),
        )

    return tuple(sorted((answer for answer in answers if answer.text.strip()), key=rank))


def shown(decision: Decision, candidates: Sequence[StudentAnswer]) -> tuple[StudentAnswer, ...]:
    """The candidates that Gemini is shown: all of them, or the best one to verify."""
    return tuple(candidates[:1] if decision == "verify" else candidates)


def candidate_lines(candidates: Sequence[StudentAnswer]) -> str:
    """The candidates as numbered lines with their roles."""
    return "\n".join(
        f"{number}. ({candidate.role}) {' '.join(candidate.text.split())}"
        for number, candidate in enumerate(candidates, start=1)
    )


def read_reply(decision: Decision, reply: str, candidates: Sequence[StudentAnswer]) -> Chosen:
    """What Gemini's reply about these candidates means. A reply that is not of the asked form decides nothing."""
    if decision == "merge":
        return Chosen(reply, f"Gemini merged {len(candidates)}") if reply.strip() else Chosen(None, "an empty merge")
    readers: dict[str, Callable[[Any, Sequence[StudentAnswer]], Chosen]] = {"select": _selected, "verify": _verified}
    try:
        value = parse_json(reply)
    except json.JSONDecodeError:
        value = None
    return readers[decision](value if isinstance(value, dict) else {}, candidates)


def _selected(value: dict[str, Any], candidates: Sequence[StudentAnswer]) -> Chosen:
    best = value.get("best")
    if not isinstance(best, int) or isinstance(best, bool) or not 0 <= best <= len(candidates):
        return Chosen(None, "Gemini's choice was unreadable")
    if best == 0:
        return Chosen(None, "Gemini found none of them right")
    return Chosen(candidates[best - 1].text, f"Gemini picked {candidates[best - 1].role} of {len(candidates)}")


def _verified(value: dict[str, Any], candidates: Sequence[StudentAnswer]) -> Chosen:
    fits = value.get("fits")
    if not isinstance(fits, bool):
        return Chosen(None, "Gemini's verdict was unreadable")
    return (
        Chosen(candidates[0].text, "Gemini verified it") if fits else Chosen(None, "Gemini said that it does not fit")
    )
