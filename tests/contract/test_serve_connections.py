"""Connections that bring no request, that do not read, and that are too many, by real sockets."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from tests.contract.test_serve_openai import KEY, QUESTION, Running, Scripted

from potstill.config import ServeLimits
from potstill.serve.connections import server_config
from potstill.student.answers import StudentQuery

IDLE_S = 0.5
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Talkative(Scripted):
    """Says words of 100 kB."""

    def script(self, query: StudentQuery) -> str:
        """64 of them, to the question `long`."""
        return " ".join(["x" * 100_000] * 64) if query.messages[-1].content == "long" else super().script(query)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server that is soon tired of waiting, for four connections at most, with little room in its sockets."""
    limits = ServeLimits(max_batch=4, max_queue=4, max_new_tokens=64, idle_timeout_s=IDLE_S, max_connections=4)
    running = Running(tmp_path, limits, student=Talkative())
    running._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    yield running
    running.stop()


def connect(server: Running) -> socket.socket:
    """A connection of a client that has room for little, and waits for at most 20 s."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return connection


def ask_for_much(server: Running) -> socket.socket:
    """A connection on which a stream of 6.4 MB was asked for."""
    body = json.dumps(
        {"model": "cost-analyst", "messages": [{"role": "user", "content": "long"}], "stream": True, "max_tokens": 64}
    )
    connection = connect(server)
    kind = "Content-Type: application/json\r\nConnection: close"
    connection.sendall(f"{HEAD}{kind}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    read = bytearray()
    try:
        while part := connection.recv(65536):
            read += part
    except ConnectionError:
        pass
    return bytes(read)


@pytest.mark.parametrize("start", [b"", b"GET /health HTT", HEAD.encode(), HEALTH + b"G"], ids=repr)
def test_unfinished_head_ends(server: Running, start: bytes) -> None:
    """A connection without a whole request head is closed in time: at its start, in its middle, after another request."""
    with closing(connect(server)) as connection:
        connection.sendall(start)
        began = time.monotonic()
        rest(connection)
        assert time.monotonic() - began < 10 * IDLE_S


def test_head_by_the_byte_ends(server: Running) -> None:
    """A head that comes byte by byte gets no more time than any other."""
    with closing(connect(server)) as connection:
        sent = 0
        with suppress(ConnectionError):
            for byte in HEAD * 10:
                connection.sendall(byte.encode())
                sent += 1
                time.sleep(IDLE_S / 10)
    assert sent < len(HEAD)


def test_answer_that_takes_longer_comes(server: Running) -> None:
    """The time counts for the client's moves, not for the student's."""
    release = threading.Timer(4 * IDLE_S, server.student.released.set)
    release.start()
    with server.client() as client:
        held = [{"role": "user", "content": "hold"}]
        reply = client.chat.completions.create(model="cost-analyst", messages=held)
    assert reply.choices[0].message.content == "cost-analyst says hold"


def test_client_that_does_not_read_is_cut_off(server: Running) -> None:
    """A stream that nobody reads ends, and what nobody read is gone; others are answered meanwhile."""
    with closing(ask_for_much(server)) as connection, server.client() as client:
        assert client.chat.completions.create(model="cost-analyst", messages=QUESTION).choices
        deadline = time.monotonic() + 20
        while not server.log.is_file() or server.log.read_text().count("/v1/chat/completions") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        read = rest(connection)
    assert b" 200 " in read
    assert len(read) < 1_000_000


def test_client_that_reads_slowly_gets_everything(server: Running) -> None:
    """Who is behind, but reads, is not cut off."""
    with closing(ask_for_much(server)) as connection:
        read = bytearray()
        for _ in range(8):
            read += connection.recv(65536)
            time.sleep(IDLE_S / 2)
        read += rest(connection)
    assert len(read) > 6_400_000
    assert b"[DONE]" in read


def test_one_connection_too_many_is_closed(server: Running) -> None:
    """With as many connections as may be the next is closed at once; when one has gone the next is served."""
    open_ones = [connect(server) for _ in range(4)]
    with closing(connect(server)) as fifth:
        began = time.monotonic()
        assert rest(fifth) == b""
        assert time.monotonic() - began < IDLE_S
    for connection in open_ones:
        connection.close()
    with closing(connect(server)) as another:
        another.sendall(HEALTH)
        assert b" 200 " in another.recv(100)


def test_kept_connections_outlast_their_clients_patience() -> None:
    """Between two requests the server waits longer than httpx (and so the openai client), so no request meets a closed door."""
    assert server_config(None, ServeLimits()).timeout_keep_alive > (httpx.Limits().keepalive_expiry or 0)


def test_connections_leave_room_for_files() -> None:
    """A system that allows few open files gets fewer connections; the limit is raised only as far as they need."""
    code = (
        "import resource\nfrom potstill.serve.connections import room_for\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
        "print(room_for(30), room_for(100), resource.getrlimit(resource.RLIMIT_NOFILE)[0], room_for(4096))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["30", "100", "200", "128"]
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
