"""A student behind a URL: what is sent, what is read, and what each failure becomes; over a socket, no mocks."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from potstill.errors import ConfigError, InputError, KeyRefusedError, MachineError
from potstill.infer.panel import Panel
from potstill.records import Message
from potstill.student.answers import StudentQuery
from potstill.student.remote import CONNECTIONS, RemoteStudent

FORMS: dict[str, Any] = {
    "odd": {"id": "x", "object": "chat.completion", "choices": []},
    "page": "<html>",
    "list": [1],
    "null": None,
    "silent": {"choices": [{"index": 0}]},
    "uncounted": {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}], "usage": {}},
}
"""Replies with status 200 that are no chat completions."""
SYSTEMS = {"cost-analyst": "You count costs.", "hardware-expert": "You know hardware."}


class Plain(ThreadingHTTPServer):
    """A server of OpenAI's shape that knows no role's prompt; it echoes, and answers as the last turn tells it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.together = threading.Barrier(2)
        self.under_way: set[int] = set()
        self.most = 0
        self.full = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """A client that has gone away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Plain

    def do_POST(self) -> None:
        """One answer."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
        said = body["messages"][-1]["content"]
        if said == "together":
            self.server.together.wait(20)
        if said == "slow":
            self.server.under_way.add(threading.get_ident())
            self.server.most = max(self.server.most, len(self.server.under_way))
            time.sleep(0.1)
            self.server.under_way.discard(threading.get_ident())
        if said == "hang":
            if len(self.server.seen) == CONNECTIONS:
                self.server.full.set()
            time.sleep(3)
        status, _, rest = said.partition(" ")
        if status.isdecimal() and not (rest == "once" and len(self.server.seen) > 1):
            return self._send(int(status), {"error": {"message": "no", "type": "x", "param": None, "code": None}})
        if said in FORMS:
            return self._send(200, FORMS[said], "text/html" if said == "page" else "application/json")
        token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
        tokens = None if said == "mute" else {"content": [token, {**token, "logprob": -1.5}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": f" {said} "}, "finish_reason": "length"}
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        return self._send(200, {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                                "choices": [{**choice, "logprobs": tokens}], "usage": usage})  # fmt: skip

    def _send(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        if status == 302:
            self.send_header("location", "http://127.0.0.1:9/v1/chat/completions")
        if status == 503:
            self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def running() -> Iterator[Plain]:
    """One server for all tests."""
    with Plain() as server:
        yield server
        server.shutdown()


@pytest.fixture
def plain(running: Plain) -> Plain:
    """The server, as if nobody had asked yet."""
    running.seen.clear()
    return running


def ask(text: str, role: str = "cost-analyst", **more: Any) -> StudentQuery:
    """A question."""
    return StudentQuery(role=role, messages=(Message(role="user", content=text),), max_new_tokens=5, **more)


def test_key_and_role_prompt_go_along(plain: Plain) -> None:
    """The key is the bearer's, the role's system prompt comes first, and log-probabilities are asked for and read."""
    student = RemoteStudent(plain.url, SYSTEMS, "the-key", 30)
    (answer,) = student.answer([ask("hello", seed=3, stop=("x",))])
    headers, body = plain.seen[0]
    assert headers["authorization"] == "Bearer the-key"
    assert body == {
        "model": "cost-analyst",
        "messages": [{"role": "system", "content": "You count costs."}, {"role": "user", "content": "hello"}],
        "max_tokens": 5, "temperature": 0.0, "logprobs": True, "seed": 3, "stop": ["x"],
    }  # fmt: skip
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == (
        "hello",
        "length",
        7,
        2,
    )
    assert (answer.mean_logprob, answer.min_logprob) == (-1.0, -1.5)


def test_what_a_chat_brings_itself_is_kept(plain: Plain) -> None:
    """A chat with a system turn of its own gets no second one; a server without log-probabilities gives no confidence."""
    query = StudentQuery(
        role="cost-analyst", max_new_tokens=5,
        messages=(Message(role="system", content="Be brief."), Message(role="user", content="mute")),
    )  # fmt: skip
    (answer,) = RemoteStudent(plain.url, SYSTEMS, None, 30).answer([query])
    assert [turn["content"] for turn in plain.seen[0][1]["messages"]] == ["Be brief.", "mute"]
    assert answer.mean_logprob is None


def test_without_a_key_no_other_key_is_sent(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENAI_API_KEY is the teacher's and never reaches the student's server."""
    monkeypatch.setenv("OPENAI_API_KEY", "the-teachers")
    RemoteStudent(plain.url, SYSTEMS, "", 30).answer([ask("hello")])
    assert "the-teachers" not in str(plain.seen)


def test_roles_are_asked_at_once(plain: Plain) -> None:
    """Two roles' queries are in flight together, and their answers come in the order of the queries."""
    student = RemoteStudent(plain.url, SYSTEMS, None, 30)
    pieces = list(student.stream([ask("together"), ask("together", "hardware-expert")]))
    assert [piece.answer.role for piece in pieces if piece.answer] == ["cost-analyst", "hardware-expert"]


async def test_questions_are_asked_at_once_within_a_limit(plain: Plain) -> None:
    """Two questions of a panel meet at the server; of forty in two roles no more are under way than there are connections."""
    student = RemoteStudent(plain.url, SYSTEMS, None, 60)
    one, both = Panel(student, ("cost-analyst",), 5), Panel(student, student.roles, 5)
    met = await asyncio.gather(*(one.ask([Message(role="user", content="together")]) for _ in range(2)))
    assert [answer.text for (answer,) in met] == ["together", "together"]
    answers = await asyncio.gather(*(both.ask([Message(role="user", content="slow")]) for _ in range(40)))
    await student.close()
    assert [tuple(answer.role for answer in found) for found in answers] == [student.roles] * 40
    assert 2 < plain.most <= CONNECTIONS


async def test_a_question_that_is_given_up_leaves_the_server(plain: Plain) -> None:
    """A cancelled question gives its connection back at once, whatever the server still does."""
    student = RemoteStudent(plain.url, SYSTEMS, None, 60)
    asked = asyncio.create_task(student.ask([ask("hang")] * (CONNECTIONS + 1)))
    await asyncio.to_thread(plain.full.wait, 20)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    (answer,) = await student.ask([ask("hello")])
    await student.close()
    assert (answer.text, len(plain.seen)) == ("hello", CONNECTIONS + 1)


def test_a_busy_server_is_asked_again(plain: Plain) -> None:
    """503 with Retry-After is waited for; one that stays busy beyond the time-out is a MachineError, and not stormed."""
    assert RemoteStudent(plain.url, SYSTEMS, None, 30).answer([ask("503 once")])[0].text == "503 once"
    assert len(plain.seen) == 2
    with pytest.raises(MachineError):
        RemoteStudent(plain.url, SYSTEMS, None, 0.2).answer([ask("429")])
    plain.seen.clear()
    with pytest.raises(MachineError):
        RemoteStudent(plain.url, SYSTEMS, None, 0.6).answer([ask("503")])
    assert len(plain.seen) <= 3, "it says Retry-After: 0"


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("401", KeyRefusedError, "POTSTILL_STUDENT_API_KEY"),
        ("403", KeyRefusedError, "POTSTILL_STUDENT_API_KEY"),
        ("400", InputError, "/v1"),
        ("404", InputError, "/v1"),
        ("302", MachineError, "student_url"),
        ("500", MachineError, "student_url"),
        *((form, MachineError, "student_url") for form in FORMS),
    ],
)
def test_failures_are_told_apart(plain: Plain, said: str, error: type[Exception], told: str) -> None:
    """Each refusal becomes its own error with the next step, and the key is in none of them."""
    with pytest.raises(error) as caught:
        RemoteStudent(plain.url, SYSTEMS, "the-key", 30).answer([ask(said)])
    assert told in caught.value.hint
    assert "the-key" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:the-key@127.0.0.1:9/v1", "http://[::1/v1", "127.0.0.1:9/v1", "", "http://a\x00/v1"]
)
def test_a_url_is_a_plain_address(url: str) -> None:
    """A password in the URL would stand in errors and traces: it is refused, unseen, and so is what is no URL."""
    with pytest.raises(ConfigError, match="student_url") as caught:
        RemoteStudent(url, SYSTEMS, None, 5)
    assert "POTSTILL_STUDENT_API_KEY" in str(caught.value.hint)
    assert "the-key" not in f"{caught.value} {caught.value.hint}"


def test_silence_and_absence_end(plain: Plain) -> None:
    """A server that says nothing is a MachineError after the time-out, one that is not there at once; so is a strange role."""
    with pytest.raises(MachineError, match=r"within 0\.3 s"):
        RemoteStudent(plain.url, SYSTEMS, None, 0.3).answer([ask("hang")])
    with pytest.raises(MachineError):
        RemoteStudent("http://127.0.0.1:9/v1", SYSTEMS, None, 5).answer([ask("hello")])
    with pytest.raises(InputError, match="has no role"):
        RemoteStudent(plain.url, SYSTEMS, None, 5).answer([ask("hello", "nobody")])


def test_fingerprint_carries_the_prompts() -> None:
    """The cache's key differs by URL and by every system prompt."""
    prints = {
        RemoteStudent(url, systems, None, 5).fingerprint
        for url in ("http://a/v1", "http://b/v1")
        for systems in (SYSTEMS, {**SYSTEMS, "cost-analyst": "Other."})
    }
    assert len(prints) == 4
