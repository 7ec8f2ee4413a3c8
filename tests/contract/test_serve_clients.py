"""Tools of others, and crowds, against a running server."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.contract.test_serve_openai import KEY, QUESTION, Running

from potstill.config import ServeLimits

LIMITS = ServeLimits(max_batch=4, max_queue=64, max_new_tokens=64, max_body_bytes=20_000, body_timeout_s=5)
IDLE = 1000
HEADERS = {"Authorization": f"Bearer {KEY}"}
HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all clients."""
    running = Running(tmp_path_factory.mktemp("clients"), LIMITS)
    yield running
    running.stop()


def test_schemathesis_finds_nothing(server: Running) -> None:
    """Generated requests over the server's own OpenAPI document meet no 500 and nothing that the document does not say.

    One check is left out: that all which fits the document is accepted, as it cannot say what depends on the student.
    """
    command = [str(Path(sys.executable).parent / "st"), "run", f"{server.url}/openapi.json", "--checks", "all",
               "--exclude-checks", "positive_data_acceptance", "--max-examples", "10",
               "--phases", "coverage,fuzzing,stateful", "-H", f"Authorization: Bearer {KEY}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:]


def test_description_names_models_and_parameters(server: Running) -> None:
    """The OpenAPI document names the models and every parameter that a request may carry."""
    found = httpx.get(f"{server.url}/openapi.json", headers=HEADERS).json()
    fields = found["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["model"]["enum"] == ["hardware-expert", "cost-analyst", "all"]
    assert {"messages", "seed", "stop", "logprobs", "response_format"} <= set(fields)


def test_idle_connections_and_slow_bodies_stall_nobody(server: Running) -> None:
    """With 1,000 connections that say nothing or half a head, and one whose body never ends, others are answered; the slow one gets 408."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(now, 3 * IDLE)), most))  # both ends are in this process
    port = int(server.url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE)]
    for connection in idle[::2]:
        connection.sendall(HEAD.encode())
    slow = socket.create_connection(("127.0.0.1", port))
    slow.sendall(f"{HEAD}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{{".encode())
    with server.client() as client:
        assert client.chat.completions.create(model="cost-analyst", messages=QUESTION).choices
    slow.settimeout(60)
    assert b" 408 " in slow.recv(100)
    for connection in [*idle, slow]:
        connection.close()


async def test_flood_is_refused_in_part_and_survived(server: Running) -> None:
    """Of 300 requests at once each is answered or told to come back (503 with Retry-After); then all is as before."""
    body = {"model": "cost-analyst", "messages": QUESTION}
    async with httpx.AsyncClient(headers=HEADERS, timeout=60, limits=httpx.Limits(max_connections=300)) as client:
        url = f"{server.url}/v1/chat/completions"
        replies = await asyncio.gather(*(client.post(url, json=body) for _ in range(300)))
        after = await client.post(url, json=body)
    assert {reply.status_code for reply in replies} <= {200, 503}
    assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
    assert after.status_code == 200
    assert json.loads(after.text)["choices"][0]["message"]["content"] == "cost-analyst says hello"
