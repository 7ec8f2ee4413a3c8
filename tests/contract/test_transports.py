"""One suite over every transport, through its real SDK: what comes back is the same, and each send is one request."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import SecretStr

from potstill.config import Secrets, TeacherConfig
from potstill.errors import ConfigError, KeyRefusedError, MachineError, QuotaError, UsageError
from potstill.records import Message, Usage
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.connect import check_teacher, connect
from potstill.teacher.emulator import EmulatorSettings, Running, running
from potstill.teacher.retrying import Failure, GiveUp, Retry, Stop, after_failure
from potstill.teacher.transport import GeminiTransport, Received, Transport
from potstill.teacher.transport_openai import OpenAITransport
from potstill.teacher.wire import Reply, parse_reply

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
MODEL = "gemini-2.5-flash-lite"
LEGACY = pytest.mark.skipif(
    importlib.util.find_spec("google.generativeai") is None,
    reason="google-generativeai is not installed: pip install 'potstill[legacy]' in an environment of its own",
)
KINDS: dict[str, dict[str, Any]] = {
    "google-genai": {},
    "google-generativeai": {"sdk": "google-generativeai"},
    "openai": {"provider": "openai"},
}
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=LEGACY if name == "google-generativeai" else ()) for name in KINDS]
)


def teacher_of(kind: str, url: str) -> TeacherConfig:
    """The config of a teacher at an emulator."""
    base = f"{url}/v1beta/openai" if kind == "openai" else url
    return TeacherConfig.model_validate({"model": MODEL, "base_url": base, "max_concurrency": 32, **KINDS[kind]})


async def test_no_client_looks_in_the_environment_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config has read it, and may say otherwise: `teacher.base_url: null` is the provider's own server for each."""
    for name in ("GOOGLE_GEMINI_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for transport in (GeminiTransport, OpenAITransport):
        sender = transport(TeacherConfig(), SecretStr("a-secret-key"))
        client = sender._client
        address = str(getattr(client, "base_url", None) or client._api_client._http_options.base_url)
        assert address.startswith("https://")
        await sender.close()


@asynccontextmanager
async def sending(kind: str, **settings: Any) -> AsyncIterator[tuple[Transport, Running]]:
    """A transport and the emulator that it sends to."""
    with running(EmulatorSettings.model_validate({"latency_s": 0, "faq": "hardware.en", **settings})) as emulator:
        transport = connect(teacher_of(kind, emulator.url), Secrets(teacher_key=SecretStr("a-secret-key")))
        yield transport, emulator
        await transport.close()


def asked(question: str = "Is 8 GB of GPU memory enough?", **more: Any) -> TeacherRequest:
    """A request in the role of the hardware expert."""
    turns = [
        Message(role="system", content="You are a hardware engineer."),
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hello, what is it?"),
        Message(role="user", content=question),
    ]
    given = {"temperature": 0.5, "max_output_tokens": 300, **more}
    return build_request(TeacherConfig(model=MODEL), turns, **given)


def read(received: Received) -> Reply:
    """The reply, which must be readable."""
    assert received.status == 200, received
    reply = parse_reply(received.body)
    assert reply is not None
    return reply


def billed(emulator: Running) -> Usage:
    """All tokens in the request log."""
    return sum((entry.billed for entry in emulator.log()), Usage())


@kinds
async def test_an_answer_and_its_usage(kind: str) -> None:
    """System prompt and turns arrive, and text, finish reason, model and usage come back as the log has them."""
    async with sending(kind) as (transport, emulator):
        reply = read(await transport.send(asked()))
        assert reply.text == "Each weight takes two bytes in half precision, so count the weights first."
        assert (reply.finish_reason, reply.model, reply.usage) == ("STOP", MODEL, billed(emulator))


@kinds
async def test_many_at_once_add_up(kind: str) -> None:
    """Sixty sends at once are sixty requests, and the usages add up to what was billed."""
    async with sending(kind, faq=None, latency_s=0.02) as (transport, emulator):
        received = await asyncio.gather(*(transport.send(asked(f"Question {number}?")) for number in range(60)))
        assert sum((read(item).usage for item in received), Usage()) == billed(emulator)
        assert len({entry.digest for entry in emulator.log()}) == 60


@kinds
@pytest.mark.parametrize(
    ("fault", "status", "decision"),
    [
        ("http-400", 400, GiveUp),
        ("http-403", 403, Stop),
        ("http-500", 500, Retry),
        ("http-503", 503, Retry),
        ("http-504", 504, Retry),
        ("bare-429", 429, Retry),
        ("minute-429", 429, Retry),
        ("daily-429", 429, Stop),
        ("zero-429", 429, Stop),
    ],
)
async def test_errors_are_one_request_and_lead_to_the_right_decision(
    kind: str, fault: str, status: int, decision: type
) -> None:
    """Each error is one POST, keeps its status and details, and the retries decide as for Gemini itself."""
    async with sending(kind, faults={fault: 1}) as (transport, emulator):
        received = await transport.send(asked())
        assert (received.status, len(emulator.log())) == (status, 1)
    decided = after_failure(Failure("http", status, received.body), 1, 5, datetime.now(UTC), 0.5)
    assert isinstance(decided, decision)
    if isinstance(decided, Retry):
        assert decided.pause_all == (fault == "minute-429")
        assert decided.overload == (fault in {"http-503", "bare-429"})
    if isinstance(decided, Stop):
        wanted = {"http-403": KeyRefusedError, "daily-429": QuotaError, "zero-429": UsageError}[fault]
        assert isinstance(decided.error, wanted)


@kinds
async def test_a_wrong_key_and_an_unknown_model_stop(kind: str) -> None:
    """A key that is refused and a model that is not there end the run, and the key is in no text."""
    async with sending(kind, keys=["another-key"]) as (transport, _):
        received = await transport.send(asked())
    decided = after_failure(Failure("http", received.status, received.body), 1, 5, datetime.now(UTC), 0.5)
    assert isinstance(decided, Stop)
    assert isinstance(decided.error, KeyRefusedError)
    assert "a-secret-key" not in repr(received) + str(decided.error)
    async with sending(kind) as (transport, _):
        received = await transport.send(asked().model_copy(update={"model": "gemini-9"}))
    decided = after_failure(Failure("http", received.status, received.body), 1, 5, datetime.now(UTC), 0.5)
    assert isinstance(decided, Stop)
    assert isinstance(decided.error, UsageError)


@kinds
@pytest.mark.parametrize("fault", ["reset", "disconnect", "truncated"])
async def test_a_lost_reply_is_not_asked_for_again(kind: str, fault: str) -> None:
    """A line that breaks after the work is reported lost, billed once, and not posted again by the SDK."""
    async with sending(kind, faults={fault: 1}) as (transport, emulator):
        received = await transport.send(asked())
        assert received.status is None
        assert received.lost
        assert not received.unsent
        assert [entry.billed.output_tokens > 0 for entry in emulator.log()] == [True]


@kinds
async def test_what_could_not_connect_was_not_sent(kind: str) -> None:
    """Where nobody listens nothing can have been billed, and it is said so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    transport = connect(teacher_of(kind, url), Secrets(teacher_key=SecretStr("a-secret-key")))
    received = await transport.send(asked())
    await transport.close()
    assert received.unsent
    assert str(received.lost).startswith("no connection")


@kinds
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("safety", "SAFETY"),
        ("recitation", "RECITATION"),
        ("no-content", "OTHER"),
        ("empty", "STOP"),
        ("unknown-finish", "FINISH_REASON_OF_TOMORROW"),
        ("thinking-limit", "MAX_TOKENS"),
        ("repetition", "MAX_TOKENS"),
    ],
)
async def test_finish_reasons_and_their_usage(kind: str, fault: str, reason: str) -> None:
    """Every way to end keeps its reason, one that nobody knows yet too, and is counted with its thinking."""
    async with sending(kind, faults={fault: 1}) as (transport, emulator):
        reply = read(await transport.send(asked()))
        assert (reply.finish_reason, reply.usage) == (reason, billed(emulator))
        assert bool(reply.text) == (fault == "repetition")
        assert reply.usage.thinking_tokens == (300 if fault == "thinking-limit" else 0)


@kinds
async def test_a_blocked_prompt_is_no_answer(kind: str) -> None:
    """A prompt that is blocked has no text, and its input is counted."""
    async with sending(kind, faults={"blocked": 1}) as (transport, emulator):
        reply = read(await transport.send(asked()))
        assert (reply.text, reply.usage) == ("", billed(emulator))
        assert reply.finish_reason == ("MISSING" if kind == "openai" else "PROMPT_BLOCKED")


@kinds
async def test_json_of_a_schema(kind: str) -> None:
    """A schema reaches the service, and an answer of its shape comes back."""
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string"}, "scores": {"type": "array", "items": {"type": "integer"}}},
        "required": ["answer", "scores"],
        "additionalProperties": False,
    }
    async with sending(kind) as (transport, _):
        reply = read(await transport.send(asked(schema=schema)))
    assert reply.text.startswith('{"answer":"Each weight')
    assert '"scores":[' in reply.text


STRANGE = {
    "redirect": (302, lambda: web.Response(status=302, headers={"Location": "/elsewhere"})),
    "page": (200, lambda: web.Response(text="<html>hello</html>", content_type="text/html")),
    "gateway": (502, lambda: web.Response(status=502, text="<html>bad gateway</html>", content_type="text/html")),
    "bytes": (None, lambda: web.Response(body=b"\xff\xfe\x00", content_type="application/json")),
    "refused": (401, lambda: web.json_response({"error": {"message": "no"}}, status=401)),
}


@kinds
@pytest.mark.parametrize("strange", sorted(STRANGE))
async def test_a_stranger_is_asked_once(kind: str, strange: str) -> None:
    """A server that is no teacher gets one request, to the address that was configured; nothing is raised."""
    status, make = STRANGE[strange]
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.path)
        return make()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        teacher = teacher_of(kind, str(server.make_url("")).rstrip("/"))
        transport = connect(teacher, Secrets(teacher_key=SecretStr("a-secret-key")))
        received = await transport.send(asked())
        await transport.close()
    assert len(seen) == 1
    assert (received.status, received.status is None) == (status, received.lost is not None)
    assert parse_reply(received.body) is None


def test_what_the_ended_sdk_cannot_do_safely_is_refused() -> None:
    """Thinking models, a thinking budget, flex and batch are a ConfigError that names the way out; so is a wrong mix."""
    secrets = Secrets(teacher_key=SecretStr("a-secret-key"))
    for change, word in (
        ({"model": "gemini-3.5-flash"}, "thinking of gemini-3.5-flash"),
        ({"model": "models/gemini-2.5-flash"}, "thinking of models/gemini-2.5-flash"),
        ({"thinking_budget": 512}, "thinking_budget"),
        ({"service": "flex"}, "flex"),
        ({"service": "batch"}, "batch"),
    ):
        given = {"sdk": "google-generativeai", "model": MODEL, **change}
        with pytest.raises(ConfigError, match=word) as refused:
            check_teacher(TeacherConfig.model_validate(given), secrets)
        assert refused.value.hint is not None
        assert "google-genai" in refused.value.hint
    for change in ({"service": "flex"}, {"thinking_budget": 9}, {"sdk": "google-generativeai"}):
        with pytest.raises(ConfigError):
            check_teacher(TeacherConfig.model_validate({"provider": "openai", **change}), secrets)


def test_a_key_is_needed_but_for_a_local_server() -> None:
    """Gemini and OpenAI want a key by its name; an OpenAI-compatible server of one's own needs none."""
    for provider, name in (("gemini", "GEMINI_API_KEY"), ("openai", "OPENAI_API_KEY")):
        with pytest.raises(KeyRefusedError, match=name):
            check_teacher(TeacherConfig.model_validate({"provider": provider}), Secrets())
    check_teacher(TeacherConfig(provider="openai", base_url="http://127.0.0.1:11434/v1"), Secrets())


def test_a_missing_package_is_said_with_its_extra() -> None:
    """Where google-generativeai is not installed, choosing it ends in 7 with the command that installs it."""
    if importlib.util.find_spec("google.generativeai") is not None:
        pytest.skip("google-generativeai is installed here")
    teacher = teacher_of("google-generativeai", "http://127.0.0.1:9")
    with pytest.raises(MachineError) as missing:
        connect(teacher, Secrets(teacher_key=SecretStr("a-secret-key")))
    assert "potstill[legacy]" in str(missing.value.hint)


@LEGACY
def test_the_ended_sdk_is_silent_on_the_terminal() -> None:
    """Its notices that it has ended do not reach standard error: the user chose it, and the docs say so."""
    code = (
        "from pydantic import SecretStr; from potstill.config import Secrets, TeacherConfig;"
        "from potstill.teacher.connect import connect;"
        f"connect(TeacherConfig(sdk='google-generativeai', model='{MODEL}'), Secrets(teacher_key=SecretStr('k')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert (result.stdout, result.stderr) == ("", "")
