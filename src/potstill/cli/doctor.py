"""`potstill doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from potstill.cli.session import ConfigKey, Session, with_session


@with_session
def doctor(
    session: Session,
    model: Annotated[str | None, typer.Option(help="Teacher model."), ConfigKey("teacher.model")] = None,
) -> None:
    """Placeholder."""
    session.show_plan({}, "plan")
