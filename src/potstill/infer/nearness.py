"""How near a question is to what the student was taught, as far as the cache's encoder can tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from potstill.errors import InputError
from potstill.infer.cache import Neighbourhood
from potstill.infer.decide import Nearness
from potstill.infer.work import Work
from potstill.records import Familiar
from potstill.student.familiar import Known, read_known

Read = Callable[[Work], Awaitable[Neighbourhood | None]]
"""The vector of what a chat has asked so far; None where the encoder failed or was too slow, which it notes."""


class Taught:
    """The training questions of a student; loaded at the first question that reaches the student."""

    def __init__(self, familiar: Familiar, path: Path, read: Read) -> None:
        """`path` holds the questions' vectors."""
        self._familiar = familiar
        self._path = path
        self._read = read
        self._known: Known | InputError | None = None
        self._opened = False

    async def nearness(self, work: Work) -> Nearness:
        """How near a question is; never raises for what is missing, but says so."""
        if not self._opened:
            self._known = self._open()
            self._opened = True
        if not isinstance(self._known, Known):
            return Nearness(why=self._known.message if self._known else f"{self._path.name} is missing or outdated")
        read = await self._read(work)
        if read is None or read.encoder is None:
            return Nearness(why="the encoder gave no vector")
        if read.encoder != self._known.encoder:
            return Nearness(why=f"cache.encoder is not {self._known.encoder}")
        if (vector := read.vectors.get(read.encoder)) is None:
            return Nearness(why=read.skipped or "", foreign=True)
        return Nearness(self._known.nearest(vector))

    def _open(self) -> Known | InputError | None:
        try:
            known = read_known(self._path)
        except InputError as error:
            return error
        return known if known is None or known.encoder == self._familiar.encoder else None
