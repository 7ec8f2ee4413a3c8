"""One paying run at a time in a workspace: two would each pay for the cells that neither has answered yet.

The lock is SQLite's own on an empty file: it works wherever the ledger does, and a process that is killed lets go of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from potstill.errors import MachineError
from potstill.teacher.line import StoppedError

LOOK_EVERY_S = 0.5


@asynccontextmanager
async def alone(path: Path, stop: asyncio.Event, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock, after waiting for whoever has it; raises StoppedError when `stop` is set before, MachineError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(path, timeout=0, isolation_level=None)
    except (OSError, sqlite3.OperationalError) as error:
        message = f"cannot create {path}: {error}"
        raise MachineError(message) from error
    with closing(lock):
        told = False
        while not _taken(lock):
            if not told:
                say("another `potstill generate` is at work in this workspace; waiting until it has ended")
                told = True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)
            if stop.is_set():
                raise StoppedError
        yield


def _taken(lock: sqlite3.Connection) -> bool:
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    return True
