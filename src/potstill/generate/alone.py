"""One paying run at a time in a workspace: two would each pay for the cells that neither has answered yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

from potstill.files import FileLock
from potstill.teacher.line import StoppedError

LOOK_EVERY_S = 0.5


@asynccontextmanager
async def alone(path: Path, stop: asyncio.Event, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock, after waiting for whoever has it; raises StoppedError when `stop` is set before, MachineError."""
    with closing(FileLock(path)) as lock:
        told = False
        while not lock.taken():
            if not told:
                say("another `potstill generate` is at work in this workspace; waiting until it has ended")
                told = True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)
            if stop.is_set():
                raise StoppedError
        yield
