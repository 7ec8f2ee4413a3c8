"""The official openai client against a running server with a scripted student."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import openai
import pytest
import uvicorn

from potstill.config import ServeConfig, ServeLimits
from potstill.serve.app import create_app
from potstill.serve.server import listen, url_of
from potstill.student.answers import Piece, StudentAnswer, StudentQuery

KEY = "a-key"
QUESTION = [{"role": "user", "content": "hello"}]


class Scripted:
    """A student that says its role and the question, word by word; `hold` in the question waits for `released`."""

    name = "scripted"
    roles = ("hardware-expert", "cost-analyst")
    fingerprint = "none"

    def __init__(self) -> None:
        self.released = threading.Event()
        self.started = threading.Event()
        self.closed = threading.Event()

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """All answers."""
        return [piece.answer for piece in self.stream(queries) if piece.answer is not None]

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Word by word."""
        try:
            for index, query in enumerate(queries):
                text = f"{query.role} says {query.messages[-1].content}"
                if "hold" in text:
                    yield Piece(index=index, text="")
                    self.started.set()
                    self.released.wait(20)
                words = text.split(" ")
                for number, word in enumerate(words):
                    yield Piece(index=index, text=word if number == 0 else f" {word}")
                answer = StudentAnswer(
                    role=query.role, text=text, finish_reason="stop", prompt_tokens=3, completion_tokens=len(words)
                )
                yield Piece(index=index, text="", answer=answer)
        finally:
            self.closed.set()


class Running:
    """A server in a thread."""

    def __init__(self, folder: Path, limits: ServeLimits, keys: tuple[str, ...] = (KEY,)) -> None:
        self.student = Scripted()
        self.log = folder / "serve.jsonl"
        self._socket = listen("127.0.0.1", 0)
        self.url = url_of(self._socket)
        serve = ServeConfig(limits=limits)
        app = create_app(self.student, serve, log_file=self.log, keys=keys)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=5))
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


def test_plain_stream_and_usage(server: Running) -> None:
    """A stream carries the same text as a plain answer, and its usage when asked for."""
    with server.client() as client:
        plain = client.chat.completions.create(model="cost-analyst", messages=QUESTION, n=2)
        with client.chat.completions.create(
            model="cost-analyst", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = list(stream)
    assert [choice.message.content for choice in plain.choices] == ["cost-analyst says hello"] * 2
    assert plain.usage.total_tokens == 9
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 6


def test_models_and_unknown_model(server: Running) -> None:
    """Each role is a model; an unknown one is 404."""
    with server.client() as client:
        assert [model.id for model in client.models.list()] == list(Scripted.roles)
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
        {"n": 0},
        {"n": 5},
        {"stop": 3},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"temperature": 3},
        {"temperature": "1"},
        {"top_p": 0},
        {"max_tokens": 0},
        {"max_tokens": 65},
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"stream": "yes"},
        {"stream_options": {"include_usage": True}},
        {"response_format": {"type": "json_object"}},
        {"tools": []},
        {"tool_choice": "auto"},
        {"logit_bias": {"1": 1}},
        {"logprobs": True},
        {"top_logprobs": 2},
        {"frequency_penalty": 1},
        {"seed": 1.5},
        {"no_such": 1},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "wizard", "content": "hello"}]},
    ],
    ids=json.dumps,
)
def test_bad_parameter(server: Running, extra: dict[str, object]) -> None:
    """A parameter that is wrong or not supported is 400 in OpenAI's shape, never ignored."""
    body = {"model": "cost-analyst", "messages": QUESTION, **extra}
    with server.client() as client:
        reply = client._client.post(
            f"{server.url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
        )
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("body", "status"), [("{", 400), ("[" * 4000, 400), ('"' + "x" * 6000 + '"', 413), ("[]", 400)]
)
def test_bad_body(server: Running, body: str, status: int) -> None:
    """Malformed, deeply nested and huge bodies are refused."""
    with server.client() as client:
        reply = client._client.post(
            f"{server.url}/v1/chat/completions", content=body, headers={"Authorization": f"Bearer {KEY}"}
        )
    assert reply.status_code == status


def test_client_that_leaves_frees_the_student(server: Running) -> None:
    """A stream that is abandoned is closed; health answers meanwhile, and its text is not in the log."""
    held = [{"role": "user", "content": "hold secret"}]
    with server.client() as client:
        stream = client.chat.completions.create(model="cost-analyst", messages=held, stream=True)
        assert server.student.started.wait(20)
        assert client._client.get(f"{server.url}/health").status_code == 200
        stream.close()
        server.student.released.set()
        assert server.student.closed.wait(20)
        client.chat.completions.create(model="cost-analyst", messages=QUESTION)
    server.stop()
    assert "secret" not in server.log.read_text()
