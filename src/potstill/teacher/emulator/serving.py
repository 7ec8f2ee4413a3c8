"""Running an emulator: in this event loop, or in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

from potstill.errors import MachineError
from potstill.teacher.emulator.journal import Logged
from potstill.teacher.emulator.server import Emulator
from potstill.teacher.emulator.settings import EmulatorSettings


@asynccontextmanager
async def listening(settings: EmulatorSettings) -> AsyncIterator[tuple[Emulator, str]]:
    """Run an emulator in this event loop; gives it and its address. Raises MachineError for a port that is taken."""
    emulator = Emulator(settings)
    runner = web.AppRunner(emulator.app(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
    try:
        try:
            await site.start()
        except OSError as error:
            message = f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
            raise MachineError(message, hint="choose another --port; 0 takes any free one") from error
        host, port = runner.addresses[0][:2]
        yield emulator, f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@dataclass(frozen=True)
class Running:
    """An emulator in a thread of its own."""

    url: str
    emulator: Emulator

    def log(self) -> list[Logged]:
        """All requests so far."""
        return list(self.emulator.journal.entries)


@contextmanager
def running(settings: EmulatorSettings) -> Iterator[Running]:
    """Run an emulator in a thread, for tests."""
    ready = threading.Event()
    found: list[Running] = []
    failed: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        try:
            async with listening(settings) as (emulator, url):
                found.append(Running(url, emulator))
                ready.set()
                await stop.wait()
        except Exception as error:  # noqa: BLE001  (handed to the thread that waits)
            failed.append(error)
            ready.set()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run, name="emulator", daemon=True)
    thread.start()
    ready.wait()
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
