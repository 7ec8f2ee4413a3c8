"""Connections are closed that bring no request, that do not read their answer, and that are too many."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from potstill.config import ServeLimits

LEAST_RATE = 240
"""Bytes a second that a client must read once it is behind; Kestrel's `MinResponseDataRate`."""


class Connection(H11Protocol):
    """uvicorn's connection under watch; uvicorn itself ends one only between two requests, and where not a byte comes.

    Every `idle_timeout_s` it is looked at. It is closed where nothing has happened since the last look that only the
    client could do: no request is whole, or what it should read has not become less.
    """

    def __init__(self, *args: Any, idle_timeout_s: float, max_connections: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = max_connections
        self._next_look: asyncio.TimerHandle | None = None
        self._seen: tuple[object, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch, or close what is one too many."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.abort()
        else:
            self._look()

    def resume_writing(self) -> None:
        """The client has read a good deal."""
        super().resume_writing()
        self._seen = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch."""
        super().connection_lost(exc)
        if self._next_look is not None:
            self._next_look.cancel()

    def _look(self) -> None:
        """Close, where the client has let all its time pass; else look again."""
        before, self._seen = self._seen, self._waiting_for()
        if before is not None and self._seen is not None and before[0] is self._seen[0]:
            least = LEAST_RATE * self._idle_timeout_s
            if self._seen[1] > before[1] - least:
                self.transport.abort()
                return
        self._next_look = self.loop.call_later(self._idle_timeout_s, self._look)

    def _waiting_for(self) -> tuple[object, int] | None:
        """After which request, and at how many unread bytes, the client's move is waited for; None where it is ours."""
        answered = self.cycle is None or self.cycle.response_complete
        if answered or self.flow.write_paused:
            return self.cycle, self.transport.get_write_buffer_size()
        return None


def room_for(connections: int) -> int:
    """How many of so many connections there is room for: each may need two open files. Many systems begin with 1,024."""
    try:
        import resource
    except ImportError:  # not on Windows
        return connections
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections
    if now == resource.RLIM_INFINITY or now >= wanted:
        return connections
    allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return min(connections, allowed // 2)


def server_config(app: Any, limits: ServeLimits) -> uvicorn.Config:
    """What uvicorn serves `app` with. Its own 5 s between two requests are httpx's too: whichever is first, one loses."""
    connection: Any = partial(
        Connection, idle_timeout_s=limits.idle_timeout_s, max_connections=room_for(limits.max_connections)
    )
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=max(1, round(limits.idle_timeout_s)),
        timeout_graceful_shutdown=max(1, round(limits.timeout_s)),
    )
