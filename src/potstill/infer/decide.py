"""What to do with a question, as pure decisions: each names what was decided, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    """When Gemini is asked. `threshold` is the mean log-probability from which a student's answer stands alone."""

    mode: Mode
    threshold: float | None
    reason: str


@dataclass(frozen=True)
class TakeStudent:
    """Serve a student's answer without Gemini."""

    answer: StudentAnswer
    reason: str


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


def policy(decide: Mode | None, threshold: float | None) -> Policy:
    """When Gemini is asked; unset, a verdict's threshold makes it `uncertain`, and without one it is `always`."""
    if decide is not None:
        return Policy(decide, threshold, f"decide {decide}")
    if threshold is not None:
        return Policy("uncertain", threshold, "decide uncertain, as the verdict has a threshold")
    return Policy("always", None, "decide always, as no verdict has a threshold")


def after_students(policy: Policy, answers: Sequence[StudentAnswer]) -> TakeStudent | AskTeacher:
    """Whether the best student answer stands alone, or Gemini is asked."""
    ranked = ranking(answers)
    if not ranked:
        return AskTeacher((), "no student answered")
    best = ranked[0]
    score = "unknown" if best.mean_logprob is None else f"{best.mean_logprob:.3f}"
    if policy.mode == "never":
        return TakeStudent(best, f"{policy.reason}; mean log-probability {score}")
    if policy.mode == "always":
        return AskTeacher(ranked, policy.reason)
    if (doubt := _doubt(policy, best)) is not None:
        return AskTeacher(ranked, doubt)
    return TakeStudent(best, f"mean log-probability {score} >= {policy.threshold:.3f}")


def _doubt(policy: Policy, best: StudentAnswer) -> str | None:
    """Why the best student answer does not stand alone."""
    if policy.threshold is None:
        return f"{policy.reason}, and no verdict has a threshold"
    if best.mean_logprob is None:
        return "the student's engine gives no log-probabilities"
    if best.finish_reason != "stop":
        return "the student's answer was cut off"
    if best.mean_logprob < policy.threshold:
        return f"mean log-probability {best.mean_logprob:.3f} < {policy.threshold:.3f}"
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
        value = json.loads(reply)
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
