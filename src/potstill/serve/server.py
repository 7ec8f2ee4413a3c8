"""Listening: the address, the signals, the drain at the end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from potstill.config import ServeConfig
from potstill.errors import MachineError, UsageError
from potstill.serve.edge import is_loopback


def check_exposure(host: str, keys: int) -> None:
    """Refuse to listen beyond loopback without an API key; raises UsageError."""
    if not keys and not is_loopback(host):
        message = f"refusing to listen on {host} without an API key"
        raise UsageError(message, hint="set POTSTILL_SERVE_API_KEYS, or listen on 127.0.0.1")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises MachineError where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror}"
        raise MachineError(message, hint="choose another with --port; 0 takes any free one") from error


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run(app: Any, serve: ServeConfig, listener: socket.socket, on_ready: Callable[[], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second one ends it at once.

    True where one of them was SIGINT; raises MachineError where it cannot start.
    """
    import uvicorn

    from potstill.serve.connections import server_config

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # this function handles them, so that SIGTERM ends in exit code 0

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready()

    server = Server(server_config(app, serve.limits))
    interrupted = False

    def stop(number: int) -> None:
        nonlocal interrupted
        interrupted = interrupted or number == signal.SIGINT
        if server.should_exit:
            server.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # it would show each request's cancellation as a fault
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        await server.serve([listener])
    except SystemExit as error:  # with 3, which means a missing key here
        message = "the server could not start"
        raise MachineError(message, hint="the log above says why") from error
    return interrupted
