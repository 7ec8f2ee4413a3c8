"""One run at a time on a student: two would write the same checkpoints, and each remove what the other has just written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from potstill.files import FileLock
from potstill.student.hub import Say
from potstill.workspace import StudentFiles

LOOK_EVERY_S = 0.5


@contextmanager
def alone(files: StudentFiles, say: Say) -> Iterator[None]:
    """Hold the student's lock, after waiting for whoever has it; raises MachineError where there can be none."""
    with closing(FileLock(files.distilling)) as lock:
        if not lock.taken():
            say(f"another `potstill distill` is at work on {files.root}; waiting until it has ended")
            while not lock.taken():
                time.sleep(LOOK_EVERY_S)
        yield
