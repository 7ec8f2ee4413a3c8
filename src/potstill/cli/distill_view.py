"""How `potstill distill --dry-run` looks: counts, warnings, and samples with their trained tokens in colour."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from potstill.cli.session import Session, colour_wanted
from potstill.wording import counted, visible

if TYPE_CHECKING:
    from potstill.config import SoftTargets
    from potstill.distill.prepare import Prepared
    from potstill.distill.preview import Stretch

LEARNED = ("\x1b[1;32m", "\x1b[0m")
MARKS = ("[[", "]]")
"""Around trained tokens where there is no colour."""


def show_dry_run(session: Session, found: Prepared) -> None:
    """What would be trained on; nothing is trained or written."""
    from potstill.distill.preview import counts, samples, warnings

    numbers, notes = counts(found.data, found.train), warnings(found.data, found.train)
    shown = samples(found.tokenizer, found.train)
    colour = colour_wanted(sys.stdout)
    document = {
        **numbers,
        "warnings": notes,
        "shown": [[part.model_dump() for part in stretches] for stretches in shown],
    }
    how = "in green" if colour else f"between {MARKS[0]} and {MARKS[1]}"
    size = f"{counted(numbers['samples'], 'sample')} of {numbers['tokens']} tokens, {numbers['learned_share']:.0%} of them learned"
    lines = [
        f"would train on {size}; {numbers['held_out']} samples are held out for the verdict",
        *([f"two tasks: the answer, and {numbers['rationales']} rationales"] if numbers["rationales"] else []),
        *_soft(session.config.distill.soft_targets),
        ", ".join(f"{name} {numbers[name]}" for name in ("truncated", "dropped", "duplicates", "leaks")),
        *(f"note: {note}" for note in notes),
        f"samples, with what is learned {how}:",
        *(f"{painted(stretches, colour=colour)}\n" for stretches in shown),
    ]
    session.show_plan(document, "\n".join(lines))


def _soft(soft: SoftTargets) -> list[str]:
    """Who scores what, where there is a local teacher."""
    if soft.teacher is None:
        return []
    own = f", of them {soft.on_policy:.0%} written by the student in each step" if soft.on_policy else ""
    return [f"soft targets ({soft.divergence}) by the local teacher {visible(soft.teacher)} on these answers{own}"]


def painted(stretches: list[Stretch], *, colour: bool) -> str:
    """One sample as text for a terminal; control characters in it are shown, not obeyed."""
    begin, end = LEARNED if colour else MARKS
    parts = (f"{begin}{visible(part.text)}{end}" if part.learned else visible(part.text) for part in stretches)
    return "\n".join(f"  | {line}" for line in "".join(parts).split("\n"))
