"""Requests that no well-meaning client sends, and what is said of those that are almost right."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tests.contract.test_serve_openai import KEY, QUESTION, Running
from tests.tiny import tiny_model, tiny_tokenizer

from potstill.config import ServeLimits
from potstill.student.local import LocalStudent, Persona
from potstill.student.manifest import StudentRole

ROLE = "hardware-expert"
CHAT = "/v1/chat/completions"
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of a tiny real student."""
    tokenizer = tiny_tokenizer()
    persona = Persona("student", (StudentRole(name=ROLE, system="Be brief."),))
    student = LocalStudent(persona, tiny_model(tokenizer), tokenizer, "sha")
    limits = ServeLimits(max_batch=8, max_prompt_tokens=5000, max_new_tokens=2000)
    running = Running(tmp_path_factory.mktemp("served"), limits, student=student)
    yield running
    running.stop()


def refusal(server: Running, path: str = CHAT, **body: Any) -> dict[str, Any]:
    """The error of a request that is refused with 400."""
    done = httpx.post(server.url + path, headers=HEADERS, json={"model": ROLE, **body}, timeout=60)
    assert done.status_code == 400, done.text
    error: dict[str, Any] = done.json()["error"]
    return error


def raw(server: Running, request: str) -> str:
    """What comes back for these bytes, until the server hangs up."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


def schema(value: dict[str, Any]) -> dict[str, Any]:
    """A response format."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"response_format": schema({"type": "no-such-type"})}, "response_format"),
        ({"response_format": schema({"$ref": "#"})}, "response_format"),
        ({"response_format": schema({"enum": []})}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
         "response_format.json_schema.name"),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_only_the_student_can_refuse_has_its_parameter_too(
    server: Running, body: dict[str, Any], param: str
) -> None:
    """A token that is not there, and a schema that nothing fits, are told with the parameter that they came in."""
    assert refusal(server, messages=QUESTION, **body)["param"] == param


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 2100}]}),
        ("/v1/completions", {"prompt": "word " * 2100}),
    ],
    ids=["chat", "completion"],
)
def test_a_prompt_beyond_the_base_is_called_so(server: Running, path: str, body: dict[str, Any]) -> None:
    """Clients look for OpenAI's code; the parameter is the one that holds the prompt."""
    error = refusal(server, path, **body)
    assert (error["code"], error["param"]) == ("context_length_exceeded", next(iter(body)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"stop": ["a", "b", "c", "d", "e"]}, "at most 4 items"),
        ({"stop": "x" * 201}, "at most 200 characters"),
        ({"stop": ["a", ""]}, "at least 1 character"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "Input should be 'text'"),
        ({"stop": 5}, "valid string"),
    ],
    ids=str,
)
def test_of_a_text_or_a_list_the_one_that_was_meant_is_explained(
    server: Running, body: dict[str, Any], said: str
) -> None:
    """Five stops are too many, rather than no string."""
    assert said in refusal(server, **{"messages": QUESTION, **body})["message"]


def test_a_stop_of_several_characters_across_tokens_ends_all_answers_alike(server: Running) -> None:
    """Every stretch of an answer's characters, one to four at a time, ends it where it begins: plain and streamed."""
    ask = {"model": ROLE, "messages": QUESTION, "max_tokens": 60, "temperature": 1, "seed": 11}

    def text(**extra: Any) -> str:
        done = httpx.post(server.url + CHAT, headers=HEADERS, json={**ask, **extra}, timeout=60)
        if not extra.get("stream"):
            return str(done.json()["choices"][0]["message"]["content"])
        events = [json.loads(line[6:]) for line in done.text.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)

    whole = text()
    starts = [place for place, letter in enumerate(whole) if letter > "\x7f"][:6]
    assert starts
    for start in starts:
        stop = whole[start : start + 1 + start % 4]
        stops = ["硬體", stop, "🙂🙂", "\r\r\r\r"]
        wanted = whole[: min(whole.find(one) for one in stops if one in whole)]
        assert text(stop=stops) == text(stop=stops, stream=True) == wanted


def test_a_body_with_two_lengths_ends_its_connection(server: Running) -> None:
    """What one side takes for a body and the other for the next request (smuggling) is neither: 400, and no second answer."""
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    )
    lengths = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = raw(server, f"{head}{lengths}GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith("HTTP/1.1 400 ")
    assert answer.count("HTTP/1.1 ") == 1


@pytest.mark.parametrize("host", ["[::1]evil", "[::1].evil:80", "localhost:80:evil", "localhost@evil", "evil"])
def test_a_host_that_only_begins_like_this_machine_is_foreign(server: Running, host: str) -> None:
    """The Host header is read as a whole."""
    assert raw(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").startswith("HTTP/1.1 400 ")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8017", "[::1]", "[::1]:8017"])
def test_this_machines_names_are_no_foreign_host(server: Running, host: str) -> None:
    """With a port or without."""
    assert raw(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").startswith("HTTP/1.1 200 ")


def test_a_compressed_body_is_refused_as_such(server: Running) -> None:
    """415, rather than a complaint about its JSON; one that is only declared so, too."""
    body = json.dumps({"model": ROLE, "messages": QUESTION, "max_tokens": 1}).encode()
    for sent in (gzip.compress(body), body):
        done = httpx.post(server.url + CHAT, headers={**HEADERS, "Content-Encoding": "gzip"}, content=sent)
        assert (done.status_code, done.json()["error"]["code"]) == (415, "unsupported_media_type")
