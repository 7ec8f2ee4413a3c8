"""The real google-genai SDK against the emulator: answers, streams, counts, models, embeddings, and what it bills."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator

import aiohttp
import httpx2
import pytest
from google import genai
from google.genai import types

from potstill.records import Usage
from potstill.teacher.emulator import EmulatorSettings, Running, running

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
MODEL = "gemini-3.5-flash-lite"
QUICK = 2
"""A seed with which the SDK waits its shortest, one second, before it posts again."""
QUESTION = "How much GPU memory does a small model need?"


def client_of(emulator: Running, *, version: str | None = None, attempts: int | None = 1) -> genai.Client:
    """The SDK, pointed at an emulator."""
    retry = types.HttpRetryOptions(attempts=attempts) if attempts else None
    options = types.HttpOptions(base_url=emulator.url, api_version=version, retry_options=retry)
    return genai.Client(api_key="any-text", vertexai=False, http_options=options)


def billed(emulator: Running) -> Usage:
    """All tokens in the request log."""
    return sum((entry.billed for entry in emulator.log()), Usage())


def used(*responses: types.GenerateContentResponse) -> Usage:
    """The tokens that answers say they used."""
    counts = [response.usage_metadata for response in responses]
    return Usage(
        input_tokens=sum(count.prompt_token_count or 0 for count in counts if count),
        output_tokens=sum(count.candidates_token_count or 0 for count in counts if count),
        thinking_tokens=sum(count.thoughts_token_count or 0 for count in counts if count),
    )


@pytest.fixture
def emulator() -> Iterator[Running]:
    """An emulator that thinks and answers at once."""
    with running(EmulatorSettings(faq="hardware.en", latency_s=0, thinking_tokens=40)) as found:
        yield found


@pytest.fixture
async def client(emulator: Running) -> AsyncIterator[genai.Client]:
    """The SDK, sync and async, on that emulator."""
    found = client_of(emulator)
    yield found
    await found.aio.aclose()


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_sync_answers_under_both_versions(emulator: Running, version: str) -> None:
    """The FAQ's answer comes back in the role that the system prompt names, with usage and the model's version."""
    config = types.GenerateContentConfig(
        system_instruction="You are a hardware engineer.",
        max_output_tokens=500,
        thinking_config=types.ThinkingConfig(thinking_budget=30, include_thoughts=True),
    )
    client = client_of(emulator, version=version)
    response = client.models.generate_content(model=MODEL, contents=QUESTION, config=config)
    assert response.text == "Each weight takes two bytes in half precision, so count the weights first."
    assert [part.thought for part in response.candidates[0].content.parts] == [True, None]
    assert (response.candidates[0].finish_reason, response.model_version) == ("STOP", MODEL)
    assert response.usage_metadata.thoughts_token_count == 30
    assert used(response) == billed(emulator)


async def test_async_answers_and_the_log_adds_up(emulator: Running, client: genai.Client) -> None:
    """Two hundred concurrent answers: the log's billed tokens are the sum of the usages that were answered."""
    responses = await asyncio.gather(
        *(client.aio.models.generate_content(model=MODEL, contents=f"Question {number}?") for number in range(200))
    )
    assert used(*responses) == billed(emulator)
    assert len({entry.digest for entry in emulator.log()}) == 200


async def test_streams_add_up_to_the_whole_answer(emulator: Running, client: genai.Client) -> None:
    """A stream's pieces are the plain answer, usage grows, and only the last event says why it ended; sync and async."""
    whole = client.models.generate_content(model=MODEL, contents=QUESTION)
    events = list(client.models.generate_content_stream(model=MODEL, contents=QUESTION))
    later = [event async for event in await client.aio.models.generate_content_stream(model=MODEL, contents=QUESTION)]
    for found in (events, later):
        assert "".join(event.text for event in found) == whole.text
        assert [event.candidates[0].finish_reason for event in found][-2:] == [None, "STOP"]
        counts = [event.usage_metadata.candidates_token_count for event in found]
        assert counts == sorted(counts)
        assert counts[-1] == whole.usage_metadata.candidates_token_count
    assert billed(emulator) == used(whole, events[-1], later[-1])


def test_a_stream_without_sse_is_one_json_array(emulator: Running) -> None:
    """Without `alt=sse` the events come as one JSON array, as older clients read it."""
    url = f"{emulator.url}/v1beta/models/{MODEL}:streamGenerateContent?key=any"
    events = httpx2.post(url, json={"contents": [{"parts": [{"text": QUESTION}]}]}).json()
    assert len(events) > 1
    assert events[-1]["candidates"][0]["finishReason"] == "STOP"


async def test_counts_tokens_free_of_charge(emulator: Running, client: genai.Client) -> None:
    """Counting agrees with the usage of an answer; with a system prompt through `generateContentRequest`; unlogged."""
    counted = client.models.count_tokens(model=MODEL, contents=QUESTION)
    again = await client.aio.models.count_tokens(model=MODEL, contents=QUESTION)
    assert again.total_tokens == counted.total_tokens
    assert emulator.log() == []
    answered = client.models.generate_content(model=MODEL, contents=QUESTION)
    assert counted.total_tokens == answered.usage_metadata.prompt_token_count
    request = {
        "model": f"models/{MODEL}",
        "contents": [{"role": "user", "parts": [{"text": QUESTION}]}],
        "system_instruction": {"parts": [{"text": "You are a hardware engineer."}]},
    }
    url = f"{emulator.url}/v1/models/{MODEL}:countTokens"
    headers = {"x-goog-api-key": "any"}
    longer = httpx2.post(url, json={"generate_content_request": request}, headers=headers).json()
    assert longer["totalTokens"] > counted.total_tokens


async def test_models_are_listed_and_found(client: genai.Client) -> None:
    """The list pages, and each model says what it can do."""
    names = [model.name for model in client.models.list(config={"page_size": 3})]
    assert f"models/{MODEL}" in names
    assert len(names) == len(set(names)) > 3
    model = await client.aio.models.get(model=MODEL)
    assert model.supported_actions == ["generateContent", "countTokens", "batchGenerateContent"]
    assert (model.input_token_limit, model.thinking) == (1_048_576, True)


async def test_embeddings_are_deterministic_and_near_where_texts_are(emulator: Running, client: genai.Client) -> None:
    """Equal texts have equal unit vectors, like texts are nearer than unlike ones, and the input is billed."""
    texts = ["memory of a graphics card", "memory of the graphics card", "growing tomatoes in spring"]
    found = client.models.embed_content(
        model="gemini-embedding-001", contents=texts, config=types.EmbedContentConfig(output_dimensionality=256)
    )
    first, second, third = [embedding.values for embedding in found.embeddings]
    assert len(first) == 256
    near, far = (sum(a * b for a, b in zip(first, other, strict=True)) for other in (second, third))
    assert near > 0.7 > far
    again = await client.aio.models.embed_content(
        model="gemini-embedding-001",
        contents=texts[0],
        config=types.EmbedContentConfig(output_dimensionality=256),
    )
    assert again.embeddings[0].values == pytest.approx(first)
    assert [entry.method for entry in emulator.log()] == ["batchEmbedContents"] * 2
    assert billed(emulator).input_tokens > 0
    single = {"content": {"parts": [{"text": texts[0]}]}, "output_dimensionality": 256}
    url = f"{emulator.url}/v1/models/gemini-embedding-001:embedContent?key=any"
    assert httpx2.post(url, json=single).json()["embedding"]["values"] == pytest.approx(first)


@pytest.mark.parametrize(("attempts", "posts"), [(None, 2), (1, 1)])
async def test_one_attempt_is_one_post_only_with_retries_off(attempts: int | None, posts: int) -> None:
    """After a disconnect the SDK posts again by itself, unseen, and is billed twice; with one attempt it does not."""
    random.seed(QUICK)
    with running(EmulatorSettings(faults={"disconnect": 1.0}, latency_s=0)) as emulator:
        client = client_of(emulator, attempts=attempts).aio
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await client.models.generate_content(model=MODEL, contents=QUESTION)
        assert len(emulator.log()) == posts
        assert all(entry.billed.output_tokens > 0 for entry in emulator.log())
        await client.aclose()


def test_lengths_follow_their_distribution() -> None:
    """Answers and thinking spread around their medians, and the same request always gets the same."""
    settings = EmulatorSettings(
        latency_s=0, answer_tokens=60, answer_spread=0.5, thinking_tokens=100, thinking_spread=0.5
    )
    with running(settings) as emulator:
        client = client_of(emulator)
        found = [client.models.generate_content(model=MODEL, contents=f"Q {number}") for number in range(80)]
        again = client.models.generate_content(model=MODEL, contents="Q 7")
    outputs = sorted(response.usage_metadata.candidates_token_count for response in found)
    thoughts = sorted(response.usage_metadata.thoughts_token_count for response in found)
    assert 45 < outputs[40] < 80
    assert 75 < thoughts[40] < 130
    assert outputs[72] > 1.4 * outputs[8]
    assert (again.text, again.usage_metadata) == (found[7].text, found[7].usage_metadata)


def test_limits_stops_and_schemas_are_kept() -> None:
    """A token limit cuts with MAX_TOKENS, a stop sequence ends the text, a schema gives JSON of its shape."""
    with running(EmulatorSettings(faq="hardware.en", latency_s=0)) as emulator:
        client = client_of(emulator)
        models = client.models
        cut = models.generate_content(
            model=MODEL, contents=QUESTION, config=types.GenerateContentConfig(max_output_tokens=5)
        )
        stopped = models.generate_content(
            model=MODEL, contents=QUESTION, config=types.GenerateContentConfig(stop_sequences=["memory"])
        )
        schema = {"type": "object", "properties": {"answer": {"type": "string"}, "score": {"type": "integer"}}}
        config = types.GenerateContentConfig(response_mime_type="application/json", response_json_schema=schema)
        parsed = models.generate_content(model=MODEL, contents=QUESTION, config=config).parsed
    assert (cut.candidates[0].finish_reason, cut.usage_metadata.candidates_token_count) == ("MAX_TOKENS", 5)
    assert (stopped.candidates[0].finish_reason, stopped.text) == ("STOP", "Plan two bytes of ")
    assert set(parsed) == {"answer", "score"}
