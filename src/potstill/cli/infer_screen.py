"""An answer on a terminal, while it is being written, and the way that it took."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from potstill.cli.session import Session
from potstill.records import Trace
from potstill.wording import visible


class Screen:
    """Shows an answer on a terminal while Gemini writes it; elsewhere, and with --json or --quiet, nothing."""

    def __init__(self, session: Session) -> None:
        shows = sys.stdout.isatty() and not session.as_json and not session.quiet
        self.tell: Callable[[str], None] | None = self._write if shows else None
        self._said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._said:  # what went wrong is told on a line of its own
            sys.stdout.write("\n")
            sys.stdout.flush()

    def finish(self, text: str) -> bool:
        """End the line, with what was not shown yet; False where nothing was shown, or something else than this."""
        if not self._said:
            return False
        whole = text.startswith(self._said)
        sys.stdout.write(
            f"{visible(text[len(self._said) :].rstrip())}\n" if whole else "\n[it broke off; answered anew:]\n"
        )
        sys.stdout.flush()
        return whole

    def _write(self, piece: str) -> None:
        self._said += piece
        sys.stdout.write(visible(piece))
        sys.stdout.flush()


def on_screen(text: str) -> str:
    """An answer as standard output may get it: as it is, but what a terminal would obey is shown there."""
    return visible(text) if sys.stdout.isatty() else text


def tell(session: Session, trace: Trace, *, whole: bool) -> None:
    """The way of one answer on standard error: a line, or the whole trace."""
    from potstill.infer.batch import beside_gemini

    if whole:
        session.say(trace.to_line().rstrip("\n"))
        return
    cost = beside_gemini(trace.cost_usd, trace.baseline_usd)
    session.say(f"{trace.route}: {trace.reason}; {cost}; {trace.latency_s:.2f} s; id {trace.id}")
