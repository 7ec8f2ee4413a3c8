"""What every OpenAI-compatible server owes its clients: ours with a tiny real model, or any by its address.

    POTSTILL_CONFORMANCE_URL=http://127.0.0.1:8000/v1 POTSTILL_CONFORMANCE_KEY=... pytest tests/contract/test_conformance.py

asks the first model of that server (vLLM, for example). What vLLM passes stands in docs/serve.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from tests.contract.test_serve_openai import KEY, QUESTION, Running
from tests.tiny import tiny_model, tiny_tokenizer

from potstill.config import ServeLimits
from potstill.student.local import LocalStudent, Persona
from potstill.student.manifest import StudentRole

LIMITS = ServeLimits(max_batch=4, max_queue=64, max_new_tokens=64, max_body_bytes=20_000)
ELSEWHERE = os.environ.get("POTSTILL_CONFORMANCE_URL")
ELSEWHERE_KEY = os.environ.get("POTSTILL_CONFORMANCE_KEY", "none")


class Target(NamedTuple):
    """A running server: its address up to and with `/v1`, a key that it takes, and one of its models."""

    url: str
    key: str
    model: str

    def ask(self, **more: Any) -> dict[str, Any]:
        """The parameters of a short chat."""
        return {"model": self.model, "messages": QUESTION, "max_tokens": 16, "temperature": 0, **more}

    def post(self, body: str, kind: str = "application/json", path: str = "chat/completions") -> httpx.Response:
        """Send a body as it is."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": kind}
        return httpx.post(f"{self.url}/{path}", content=body, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The server that is asked."""
    if ELSEWHERE:
        found = httpx.get(f"{ELSEWHERE}/models", headers={"Authorization": f"Bearer {ELSEWHERE_KEY}"}).json()
        yield Target(ELSEWHERE, ELSEWHERE_KEY, os.environ.get("POTSTILL_CONFORMANCE_MODEL", found["data"][0]["id"]))
        return
    tokenizer = tiny_tokenizer()
    persona = Persona("tiny", (StudentRole(name="expert", system="Be kind."),))
    student = LocalStudent(persona, tiny_model(tokenizer), tokenizer, "base")
    running = Running(tmp_path_factory.mktemp("conformance"), LIMITS, student=student)
    yield Target(f"{running.url}/v1", KEY, "expert")
    running.stop()


@pytest.fixture
def client(target: Target) -> Iterator[openai.OpenAI]:
    """The official client, which never retries."""
    with openai.OpenAI(base_url=target.url, api_key=target.key, max_retries=0) as made:
        yield made


def test_plain_stream_and_usage(target: Target, client: openai.OpenAI) -> None:
    """A stream carries the same text as a plain answer, its role first, its usage last when asked for."""
    plain = client.chat.completions.create(**target.ask())
    options = {"include_usage": True}
    with client.chat.completions.create(**target.ask(stream=True, stream_options=options)) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == plain.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == plain.usage.prompt_tokens
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens


def test_greedy_choices_are_alike(target: Target, client: openai.OpenAI) -> None:
    """Two greedy choices say the same, and the prompt is counted once."""
    one, two = (client.chat.completions.create(**target.ask(n=count)) for count in (1, 2))
    assert [choice.message.content for choice in two.choices] == [one.choices[0].message.content] * 2
    assert two.usage.prompt_tokens == one.usage.prompt_tokens


def test_model_is_retrieved(target: Target, client: openai.OpenAI) -> None:
    """A model can be retrieved by its name; an unknown one is 404."""
    assert client.models.retrieve(target.model).id == target.model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such")


def test_models(target: Target, client: openai.OpenAI) -> None:
    """The model is listed; to ask an unknown one is 404."""
    assert target.model in [model.id for model in client.models.list()]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**target.ask(model="no-such"))


def test_key(target: Target) -> None:
    """A wrong key is 401, for the models and the answers."""
    with openai.OpenAI(base_url=target.url, api_key="wrong", max_retries=0) as stranger:
        for call in (stranger.models.list, lambda: stranger.chat.completions.create(**target.ask())):
            with pytest.raises(openai.AuthenticationError):
                call()


def test_metrics_need_a_key(target: Target) -> None:
    """Health answers without a key, metrics do not."""
    root = target.url.removesuffix("/v1")
    assert (httpx.get(f"{root}/health").status_code, httpx.get(f"{root}/metrics").status_code) == (200, 401)


BAD: tuple[dict[str, Any], ...] = (
    {"n": 0},
    {"n": 2**40},
    {"stop": 3},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"temperature": 3},
    {"temperature": "warm"},
    {"top_p": 0},
    {"max_tokens": 0},
    {"max_tokens": 10_000_000},
    {"stream": "perhaps"},
    {"stream_options": {"include_usage": True}},
    {"response_format": {"type": "yaml"}},
    {"response_format": {"type": "json_schema"}},
    {"tool_choice": "auto"},
    {"logit_bias": {"1": 101}},
    {"logit_bias": {"one": 1}},
    {"logprobs": 7},
    {"logprobs": True, "top_logprobs": 21},
    {"top_logprobs": 2},
    {"frequency_penalty": 2.5},
    {"presence_penalty": -3},
    {"seed": 1.5},
    {"no_such": 1},
    {"messages": []},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "wizard", "content": "hello"}]},
)


@pytest.mark.parametrize("extra", BAD, ids=json.dumps)
def test_bad_parameter(target: Target, extra: dict[str, object]) -> None:
    """A parameter that is wrong or not supported is 400 in OpenAI's shape, never ignored."""
    reply = target.post(json.dumps(target.ask(**extra)))
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_every_answer_has_an_id(target: Target) -> None:
    """Answers and refusals carry `x-request-id`."""
    for more in ({}, {"n": 0}):
        assert target.post(json.dumps(target.ask(**more))).headers.get("x-request-id")


@pytest.mark.parametrize("body", ["{", "[" * 4000, "[]", '{"model": "\\ud800"}'], ids=repr)
def test_bad_body(target: Target, body: str) -> None:
    """Malformed and deeply nested bodies are 400."""
    assert target.post(body).status_code == 400


def test_logprobs(target: Target, client: openai.OpenAI) -> None:
    """Log-probabilities come with bytes and rivals on chat completions, and with offsets on completions."""
    chat = client.chat.completions.create(**target.ask(logprobs=True, top_logprobs=1, seed=None, n=None))
    first = chat.choices[0].logprobs.content[0]
    assert bytes(first.bytes).decode(errors="replace") == first.token == first.top_logprobs[0].token
    assert first.logprob <= 0
    text = client.completions.create(model=target.model, prompt=["a", "b"], logprobs=1, max_tokens=2, n=2)
    assert [choice.index for choice in text.choices] == [0, 1, 2, 3]
    assert text.choices[0].logprobs.text_offset[0] == 0
    assert len(text.choices[0].logprobs.tokens) == 2


def test_seed_repeats(target: Target, client: openai.OpenAI) -> None:
    """The same seed draws the same answer, alone and among others."""
    alone = client.completions.create(model=target.model, prompt="a b", max_tokens=12, seed=7, temperature=1)
    crowd = client.completions.create(model=target.model, prompt=["a b"] * 3, max_tokens=12, seed=7, temperature=1)
    assert alone.choices[0].text in {choice.text for choice in crowd.choices}


def test_stop_text_is_not_part_of_the_answer(target: Target, client: openai.OpenAI) -> None:
    """An answer ends before the stop text, whole and streamed, also where it straddles tokens."""
    whole = client.chat.completions.create(**target.ask()).choices[0].message.content
    stop = whole[2:6]
    cut = client.chat.completions.create(**target.ask(stop=[stop])).choices[0]
    with client.chat.completions.create(**target.ask(stop=[stop], stream=True)) as stream:
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert (cut.message.content, cut.finish_reason) == (streamed, "stop")
    assert cut.message.content == whole[: whole.index(stop)]


def test_completion_stream_says_the_same(target: Target, client: openai.OpenAI) -> None:
    """A streamed completion joins to the whole one, and ends with its usage."""
    ask = {"model": target.model, "prompt": "hi there", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**ask)
    with client.completions.create(**ask, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_json_only_and_methods(target: Target) -> None:
    """Another content type is 415, so that no web page can ask in its user's name; no CORS header is ever sent."""
    headers = {"Authorization": f"Bearer {target.key}", "Origin": "https://evil.example"}
    plain = target.post(json.dumps(target.ask()), kind="text/plain")
    asked = httpx.options(f"{target.url}/chat/completions", headers=headers)
    missing = httpx.get(f"{target.url}/nothing", headers=headers)
    assert (plain.status_code, asked.status_code, missing.status_code) == (415, 405, 404)
    for reply in (plain, asked, missing):
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_foreign_host_is_refused(target: Target) -> None:
    """On loopback a Host header that does not name this machine is 400: no web page gets in by its own name."""
    headers = {"Authorization": f"Bearer {target.key}", "Host": "evil.example"}
    assert httpx.get(f"{target.url}/models", headers=headers).status_code == 400


LITELLM = """
import json, sys
import litellm
ask = json.loads(sys.argv[1])
whole = litellm.completion(**ask).choices[0].message.content
parts = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ask, stream=True)]
print(json.dumps([whole, "".join(parts)]))
"""


def test_litellm(target: Target) -> None:
    """Litellm asks and streams as it would ask OpenAI. In a process of its own: it leaves an event loop open."""
    ask = {**target.ask(model=f"openai/{target.model}"), "api_base": target.url, "api_key": target.key}
    env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "true"}  # else it asks the network while it is imported
    command = [sys.executable, "-c", LITELLM, json.dumps(ask)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, streamed = json.loads(done.stdout)
    assert whole
    assert whole == streamed


def test_langchain(target: Target) -> None:
    """langchain-openai's chat model invokes and streams, and reads usage and log-probabilities."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=target.model, base_url=target.url, api_key=target.key, temperature=0, max_tokens=16)
    reply = chat.invoke("hello")
    assert reply.content
    assert reply.usage_metadata["output_tokens"] > 0
    assert "".join(str(part.content) for part in chat.stream("hello")) == reply.content
    assert chat.bind(logprobs=True).invoke("hello").response_metadata["logprobs"]["content"]
