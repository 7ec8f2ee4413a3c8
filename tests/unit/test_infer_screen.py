"""An answer on a terminal while it is written: whole, broken off, or failed."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.cli.infer_screen import Screen, on_screen
from potstill.errors import TeacherError
from potstill.wording import visible


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("It needs 8 GB.", "It needs 8 GB.\n"),
        ("Buy a card.", "It needs\n[it broke off; answered anew:]\n"),
        (None, "It needs\n"),
        ("It needs\x1b]0;x\x07 8 GB.", "It needs\\x1b]0;x\\x07 8 GB.\n"),
    ],
)
def test_what_a_terminal_shows(answer: str | None, shown: str) -> None:
    """The rest of the answer follows; another answer is announced; an error is told on a line of its own."""
    ours, theirs = os.openpty()
    session: Any = SimpleNamespace(as_json=False, quiet=False)
    with os.fdopen(theirs, "w") as terminal, redirect_stdout(terminal), suppress(TeacherError):
        with Screen(session) as screen:
            assert screen.tell is not None
            screen.tell("It needs")
            if answer is None:
                message = "down"
                raise TeacherError(message, reason="http 503")
        assert screen.finish(answer) is (answer.startswith("It needs"))
    with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen_end:  # EIO is a terminal's end
        found = bytearray()
        while piece := screen_end.read(4096):
            found += piece
    assert found.decode().replace("\r\n", "\n") == shown


def test_what_is_piped_is_left_as_it_is() -> None:
    """Only a terminal obeys a text: elsewhere an answer is written byte for byte."""
    with redirect_stdout(io.StringIO()):
        assert on_screen("a\x1b[2Jb\t甜\u3000") == "a\x1b[2Jb\t甜\u3000"
    assert (
        visible("a\x1b[2Jb\t甜\u3000\U0001f468\u200d\U0001f469\n") == "a\\x1b[2Jb\t甜\u3000\U0001f468\u200d\U0001f469\n"
    )
