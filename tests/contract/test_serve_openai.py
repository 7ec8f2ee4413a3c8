"""The official openai client against a running server with a scripted student."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import uvicorn

from potstill.config import ServeConfig, ServeLimits
from potstill.serve.access import Keys
from potstill.serve.app import Parts, create_app
from potstill.serve.connections import server_config
from potstill.serve.server import listen, url_of
from potstill.student.answers import Continuous, StudentQuery
from potstill.student.scripted import ScriptedStudent

KEY = "a-key"
ADMIN = "an-admin-key"
QUESTION = [{"role": "user", "content": "hello"}]


class Scripted(ScriptedStudent):
    """A student that says its role and the question; `hold` in the question waits for `released`."""

    def __init__(self) -> None:
        super().__init__(self.script, roles=("hardware-expert", "cost-analyst"))
        self.released = threading.Event()
        self.started = threading.Event()

    def script(self, query: StudentQuery) -> str:
        """The answer."""
        question = query.messages[-1].content if query.text is None else query.text
        if "hold" in question:
            self.started.set()
            self.released.wait(20)
        return f"{query.role} says {question}"


class Running:
    """A server in a thread."""

    def __init__(
        self, folder: Path, limits: ServeLimits, parts: Parts | None = None, student: Continuous | None = None
    ) -> None:
        self.student = student if isinstance(student, Scripted) else Scripted()
        self.log = folder / "serve.jsonl"
        self._socket = listen("127.0.0.1", 0)
        self.url = url_of(self._socket)
        parts = parts or Parts(keys=Keys((KEY,), (ADMIN,)))
        app = create_app(student or self.student, ServeConfig(limits=limits), log_file=self.log, parts=parts)
        self._server = uvicorn.Server(server_config(app, limits))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._socket])))
        self._thread.start()

    def client(self, key: str = KEY, **headers: str) -> openai.OpenAI:
        """A client that never retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, default_headers=headers)

    def stop(self) -> None:
        """Drain and end."""
        self.student.released.set()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server with small limits."""
    running = Running(tmp_path, ServeLimits(max_batch=4, max_queue=1, max_new_tokens=64, max_body_bytes=5000))
    yield running
    running.stop()


def test_models_and_unknown_model(server: Running) -> None:
    """Each role is a model; an unknown one is 404."""
    with server.client() as client:
        assert [model.id for model in client.models.list()] == ["hardware-expert", "cost-analyst", "all"]
        assert client.models.retrieve("cost-analyst").id == "cost-analyst"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="gpt-4", messages=QUESTION)


def test_key_and_host(server: Running) -> None:
    """A wrong key is 401, a foreign Host 400, and health answers without a key."""
    with server.client(key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with server.client(Host="evil.example") as client, pytest.raises(openai.BadRequestError):
        client.models.list()
    with server.client(key="wrong") as client:
        assert client._client.get(f"{server.url}/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 5},
        {"temperature": "1"},
        {"max_tokens": 65},
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"stream": "yes"},
        {"tools": []},
        {"logprobs": 1},
        {"top_logprobs": 1},
        {"stream_options": {"include_usage": True}},
        {"store": 0},
    ],
    ids=json.dumps,
)
def test_bad_parameter(server: Running, extra: dict[str, object]) -> None:
    """A refusal names the parameter; test_conformance.py has what any server refuses."""
    body = {"model": "cost-analyst", "messages": QUESTION, **extra}
    with server.client() as client:
        reply = client._client.post(
            f"{server.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
        )
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert reply.json()["error"]["param"] == list(extra)[-1]
    assert reply.headers["x-request-id"]


def test_unknown_method_is_told_the_known_ones(server: Running) -> None:
    """405 lists every method of the path."""
    with server.client() as client:
        reply = client._client.put(f"{server.url}/v1/roles", headers={"Authorization": f"Bearer {KEY}"})
    assert reply.status_code == 405
    assert set(reply.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_client_that_leaves_frees_the_student(server: Running) -> None:
    """A stream that is abandoned says no more; health answers meanwhile, and no text is in the log."""
    held = [{"role": "user", "content": "hold secret"}]
    with server.client() as client:
        waiting = threading.Thread(target=lambda: _abandon(server, held))
        waiting.start()
        assert server.student.started.wait(20)
        assert client._client.get(f"{server.url}/health").status_code == 200
        waiting.join()
        server.student.released.set()
        client.chat.completions.create(model="cost-analyst", messages=QUESTION)
        metrics = client._client.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert "potstill_running 0.0" in metrics
    server.stop()
    assert "secret" not in server.log.read_text()


def _abandon(server: Running, messages: list[dict[str, str]]) -> None:
    with server.client() as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).chat.completions.create(model="cost-analyst", messages=messages, stream=True)


def test_every_role_answers_in_one_batch(server: Running) -> None:
    """`all` gives one choice for each role, named on the choice, whole and streamed."""
    with server.client() as client:
        reply = client.chat.completions.create(model="all", messages=QUESTION)
        with client.chat.completions.create(model="all", messages=QUESTION, stream=True) as stream:
            roles = {chunk.choices[0].potstill["role"] for chunk in stream if chunk.choices[0].finish_reason}
    said = {choice.potstill["role"]: choice.message.content for choice in reply.choices}
    assert said == {role: f"{role} says hello" for role in server.student.roles}
    assert roles == set(said)


def test_logprobs_on_both_endpoints(server: Running) -> None:
    """Log-probabilities come with bytes on chat completions, and with offsets on completions; a null is nothing."""
    with server.client() as client:
        chat = client.chat.completions.create(
            model="cost-analyst", messages=QUESTION, logprobs=True, top_logprobs=1, seed=None, n=None
        )
        text = client.completions.create(model="cost-analyst", prompt=["a", "b"], logprobs=1, max_tokens=2, n=2)
    first = chat.choices[0].logprobs.content[0]
    assert (first.token, bytes(first.bytes), first.top_logprobs[0].token) == (
        "cost-analyst",
        b"cost-analyst",
        first.token,
    )
    assert [choice.text for choice in text.choices] == ["cost-analyst says"] * 4
    assert text.choices[0].logprobs.text_offset == [0, len("cost-analyst")]
    assert text.choices[0].finish_reason == "length"
    assert text.usage.prompt_tokens == 2


def test_scopes(server: Running) -> None:
    """Only an admin key changes roles; without a key neither metrics nor the page answer, a browser may log in."""
    with server.client() as client:
        http, url = client._client, f"{server.url}/v1/roles"
        assert http.get(f"{server.url}/metrics").status_code == 401
        asked = http.get(f"{server.url}/")
        assert asked.headers["www-authenticate"].startswith("Basic")
        shown = http.get(f"{server.url}/", auth=("anyone", KEY))
        assert "hardware-expert" in shown.text
        assert "<script" not in shown.text
        refused = http.post(url, json={"student": "x"}, headers={"Authorization": f"Bearer {KEY}"})
        admin = http.post(url, json={"student": "../x"}, headers={"Authorization": f"Bearer {ADMIN}"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    assert admin.status_code == 400
