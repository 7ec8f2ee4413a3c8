"""`potstill init`."""

from __future__ import annotations

from potstill.cli.session import Session, with_session


@with_session(model="teacher.model")
def init(session: Session) -> None:
    """Placeholder."""
    session.show_plan({}, "plan")
