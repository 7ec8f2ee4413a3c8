"""Every refusal and every broken answer of the emulator, as the real google-genai SDK shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args

import aiohttp
import httpx2
import pytest
from google import genai
from google.genai import errors, types

from potstill.records import Usage
from potstill.teacher.emulator import EmulatorSettings, Running, running
from potstill.teacher.emulator.faults import ANSWER, HTTP, JOB, QUOTA, SHED
from potstill.teacher.emulator.settings import Fault

pytestmark = [
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is not a valid FinishReason:UserWarning"),
]
MODEL = "gemini-3.5-flash-lite"
BROKEN = {"reset", "disconnect", "unbilled", "stall", "slow", "truncated", "mid-stream"}
BATCH = {*JOB, "batch-lost", "batch-503"}


@asynccontextmanager
async def asking(timeout_ms: int | None = None, **settings: Any) -> AsyncIterator[tuple[genai.Client, Running]]:
    """An emulator with these settings, and the SDK pointed at it."""
    with running(EmulatorSettings.model_validate({"latency_s": 0, **settings})) as emulator:
        retry = types.HttpRetryOptions(attempts=1)
        options = types.HttpOptions(base_url=emulator.url, retry_options=retry, timeout=timeout_ms)
        client = genai.Client(api_key="any-text", vertexai=False, http_options=options)
        yield client, emulator
        await client.aio.aclose()


async def refused(client: genai.Client, question: str = "Q", **config: Any) -> errors.APIError:
    """The error that a question ends in; sync and async are the same."""
    wanted = types.GenerateContentConfig.model_validate(config)
    with pytest.raises(errors.APIError) as found:
        client.models.generate_content(model=MODEL, contents=question, config=wanted)
    with pytest.raises(errors.APIError) as again:
        await client.aio.models.generate_content(model=MODEL, contents=question, config=wanted)
    assert (found.value.code, found.value.status) == (again.value.code, again.value.status)
    return found.value


def details(error: errors.APIError) -> dict[str, dict[str, Any]]:
    """The error's details by the last part of their type."""
    return {item["@type"].rsplit(".", 1)[1]: item for item in error.details["error"].get("details", [])}


def test_every_fault_is_tested() -> None:
    """The faults that the settings know are those of the tables and lists that the tests go through."""
    assert {*HTTP, *QUOTA, *ANSWER, *BROKEN, *BATCH, *SHED} == set(get_args(Fault))


@pytest.mark.parametrize(("fault", "status"), [("flex-503", 503), ("flex-429", 429)])
async def test_flex_alone_is_shed(fault: str, status: int) -> None:
    """A flex request is refused for want of capacity; the same one at the standard service is answered."""
    async with asking(faults={fault: 1.0}) as (client, _):
        assert (await refused(client, service_tier="flex")).code == status
        answered = await client.aio.models.generate_content(model=MODEL, contents="Q")
        assert answered.text


@pytest.mark.parametrize("fault", sorted(HTTP))
async def test_plain_errors(fault: str) -> None:
    """A plain error has its code and name, no details, and bills nothing."""
    async with asking(faults={fault: 1}) as (client, emulator):
        error = await refused(client)
    code, status, message = HTTP[fault]
    assert (error.code, error.status, error.message) == (code, status, message)
    assert isinstance(error, errors.ClientError if code < 500 else errors.ServerError)
    assert details(error) == {}
    assert [(entry.status, entry.fault, entry.billed) for entry in emulator.log()] == [(code, fault, Usage())] * 2


@pytest.mark.parametrize(
    ("settings", "quota_id", "value"),
    [
        ({"faults": {"minute-429": 1}}, "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "5"),
        ({"faults": {"daily-429": 1}}, "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "20"),
        ({"faults": {"zero-429": 1}}, "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "0"),
        ({"faults": {"spend-429": 1}}, "SpendPerTenMinutesPerProject", "10"),
        ({"rpm": 0}, "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "0"),
        ({"tpm": 1, "tier": "tier2"}, "GenerateContentPaidTierInputTokensPerModelPerMinute-PaidTier2", "1"),
        ({"rpm": 0, "tier": "tier1"}, "GenerateRequestsPerMinutePerProjectPerModel", "0"),
    ],
)
async def test_quota_refusals(settings: dict[str, Any], quota_id: str, value: str) -> None:
    """A quota's 429 names quota and value, and advises a wait in the details and, finer, in the message."""
    async with asking(**settings) as (client, emulator):
        error = await refused(client, "one two three four")
    found = details(error)
    violation = found["QuotaFailure"]["violations"][0]
    assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
    assert (violation["quotaId"], violation["quotaValue"]) == (quota_id, value)
    assert violation["quotaDimensions"]["model"] == MODEL
    assert f"limit: {value}, model: {MODEL}\nPlease retry in " in error.message
    assert found["RetryInfo"]["retryDelay"].endswith("s")
    assert all(entry.billed == Usage() for entry in emulator.log())
    assert error.response is not None
    assert "retry-after" not in {name.lower() for name in error.response.headers}


async def test_quotas_count_and_open_again() -> None:
    """Two requests pass in a window of two, the third is refused and says how long; after that wait it passes."""
    async with asking(rpm=2, minute_s=1.0) as (client, emulator):
        await asyncio.sleep(1.0 - time.time() % 1.0)
        for _ in range(2):
            client.models.generate_content(model=MODEL, contents="Q")
        with pytest.raises(errors.ClientError) as third:
            client.models.generate_content(model=MODEL, contents="Q")
        client.models.generate_content(model="gemini-3.5-flash", contents="another model has a window of its own")
        await asyncio.sleep(float(details(third.value)["RetryInfo"]["retryDelay"].rstrip("s")) + 0.02)
        client.models.generate_content(model=MODEL, contents="Q")
    assert [entry.status for entry in emulator.log()] == [200, 200, 429, 200, 200]


async def test_dollars_in_ten_minutes_run_out() -> None:
    """Answers are refused once those before cost as many dollars as the quota allows in ten minutes, over all models."""
    async with asking(spend_usd="0.0001", answer_tokens=200) as (client, emulator):
        client.models.generate_content(model=MODEL, contents="Q")
        with pytest.raises(errors.ClientError) as over:
            client.models.generate_content(model="gemini-3.5-flash", contents="Q")
    assert details(over.value)["QuotaFailure"]["violations"][0]["quotaValue"] == "0.0001"
    assert [entry.status for entry in emulator.log()] == [200, 429]


@pytest.mark.parametrize(
    ("fault", "reason", "parts"),
    [
        ("safety", "SAFETY", None),
        ("recitation", "RECITATION", None),
        ("empty", "STOP", None),
        ("no-content", "OTHER", None),
        ("unknown-finish", "FINISH_REASON_OF_TOMORROW", None),
        ("thinking-limit", "MAX_TOKENS", None),
        ("repetition", "MAX_TOKENS", 1),
    ],
)
async def test_answers_that_are_none(fault: str, reason: str, parts: int | None) -> None:
    """Odd answers come with status 200, their finish reason, and are billed what their usage says."""
    async with asking(faults={fault: 1}) as (client, emulator):
        response = client.models.generate_content(
            model=MODEL, contents="Q", config=types.GenerateContentConfig(max_output_tokens=300)
        )
        streamed = list(client.models.generate_content_stream(model=MODEL, contents="Q"))
    candidate, usage = response.candidates[0], response.usage_metadata
    found = candidate.content.parts if candidate.content else None
    assert (str(candidate.finish_reason.value), found and len(found)) == (reason, parts)
    assert streamed[-1].candidates[0].finish_reason == candidate.finish_reason
    billed = emulator.log()[0].billed
    assert billed.input_tokens == usage.prompt_token_count
    assert (billed.output_tokens or None, billed.thinking_tokens or None) == (
        usage.candidates_token_count,
        usage.thoughts_token_count,
    )
    assert usage.total_token_count == billed.input_tokens + billed.output_tokens + billed.thinking_tokens
    if fault == "thinking-limit":
        assert usage.thoughts_token_count == 300
    if fault == "repetition":
        assert 250 < usage.candidates_token_count <= 300
        assert response.text.count(response.text[:20]) > 3
    assert (candidate.citation_metadata is not None) == (fault == "recitation")
    assert (candidate.content is None) == (fault == "no-content")


async def test_a_blocked_prompt_has_no_candidates() -> None:
    """A prompt that is blocked has feedback, no candidates, and usage for its input only."""
    async with asking(faults={"blocked": 1}) as (client, emulator):
        response = client.models.generate_content(model=MODEL, contents="Q")
    assert response.candidates is None
    assert response.prompt_feedback.block_reason == "PROHIBITED_CONTENT"
    assert emulator.log()[0].billed == Usage(input_tokens=response.usage_metadata.prompt_token_count)


@pytest.mark.parametrize("fault", ["reset", "disconnect", "truncated"])
async def test_lines_that_break_after_billing(fault: str) -> None:
    """The client gets nothing whole, yet the log has the answer billed once: paid and lost."""
    async with asking(faults={fault: 1}) as (client, emulator):
        with pytest.raises(aiohttp.ClientError):
            await client.aio.models.generate_content(model=MODEL, contents="Q")
        with pytest.raises(httpx2.TransportError):
            client.models.generate_content(model=MODEL, contents="Q")
        with pytest.raises(httpx2.TransportError):
            list(client.models.generate_content_stream(model=MODEL, contents="a longer question"))
    assert [entry.billed.input_tokens > 0 for entry in emulator.log()] == [True] * 3


async def test_a_line_that_breaks_before_the_work_bills_nothing() -> None:
    """`unbilled` looks the same to the client as `reset`; only the log can tell."""
    async with asking(faults={"unbilled": 1}) as (client, emulator):
        with pytest.raises(aiohttp.ClientError):
            await client.aio.models.generate_content(model=MODEL, contents="Q")
    assert [(entry.status, entry.billed) for entry in emulator.log()] == [(0, Usage())]


@pytest.mark.parametrize("fault", ["stall", "slow"])
async def test_slow_answers_arrive_in_the_end(fault: str) -> None:
    """A stalled answer waits whole, a slow one trickles; a total deadline is what ends either."""
    async with asking(faults={fault: 1}, stall_s=0.3) as (client, _):
        began = time.monotonic()
        response = await client.aio.models.generate_content(model=MODEL, contents="Q")
    assert response.text
    assert time.monotonic() - began >= 0.3


async def test_an_error_in_mid_stream_is_raised_after_the_first_pieces() -> None:
    """Pieces come, then the SDK raises the error that follows as plain JSON; what was sent is billed."""
    async with asking(faults={"mid-stream": 1}) as (client, emulator):
        seen: list[str] = []
        with pytest.raises(errors.ServerError) as sync:
            seen.extend(event.text for event in client.models.generate_content_stream(model=MODEL, contents="a b c d"))
        assert sync.value.code == 503
        with pytest.raises(errors.ServerError):
            async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents="a b c d"):
                pass
        unary = client.models.generate_content(model=MODEL, contents="a b c d")
        url = f"{emulator.url}/v1/models/{MODEL}:streamGenerateContent?key=k"
        array = httpx2.post(url, json={"contents": [{"parts": [{"text": "a b c d"}]}]}).json()
    assert unary.text.startswith("".join(seen))
    assert 0 < len("".join(seen)) < len(unary.text)
    assert [next(iter(item)) for item in array] == ["candidates", "candidates", "error"]
    first, *_ = emulator.log()
    assert 0 < first.billed.output_tokens < unary.usage_metadata.candidates_token_count


async def test_keys() -> None:
    """Without a key 403; with one that is not known 400 API_KEY_INVALID; header and query both count."""
    async with asking(keys=["the-right-one"]) as (client, emulator):
        error = await refused(client)
        assert (error.code, error.status, details(error)["ErrorInfo"]["reason"]) == (
            400,
            "INVALID_ARGUMENT",
            "API_KEY_INVALID",
        )
        url = f"{emulator.url}/v1/models"
        assert httpx2.get(url).json()["error"]["status"] == "PERMISSION_DENIED"
        assert httpx2.get(f"{url}?key=the-right-one").status_code == 200
        assert httpx2.get(url, headers={"x-goog-api-key": "the-right-one"}).status_code == 200
        assert emulator.log() == []


async def test_a_deadline_below_ten_seconds_is_refused() -> None:
    """The SDK sends its timeout along, and the service does not take less than ten seconds."""
    async with asking(timeout_ms=8000) as (client, _):
        error = await refused(client)
    assert error.message == "Manually set deadline 8s is too short. Minimum allowed deadline is 10s."
    async with asking(timeout_ms=10_000) as (client, _):
        assert client.models.generate_content(model=MODEL, contents="Q").text


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"contents": [{"parts": [{"text": "Q"}]}], "temprature": 1}, None, 'Unknown name "temprature"'),
        (
            {"contents": [{"parts": [{"text": "Q"}]}], "generationConfig": {"topN": 1}},
            "generation_config",
            "Unknown name \"topN\" at 'generation_config'",
        ),
        (
            {"contents": [{"parts": [{"text": "Q"}]}], "generation_config": {"thinking_config": {"budget": 1}}},
            "generation_config.thinking_config",
            'Unknown name "budget"',
        ),
        ({"contents": [{"parts": [{"text": "Q"}], "name": "me"}]}, "contents[0]", 'Unknown name "name"'),
        (
            {"contents": [{"parts": [{"text": "Q"}]}], "generationConfig": {"maxOutputTokens": "9"}},
            "generation_config.max_output_tokens",
            "Invalid value",
        ),
        ({"contents": [{"parts": [{"text": "Q"}]}], "serviceTier": "cheap"}, "service_tier", "Invalid value"),
    ],
)
def test_unknown_fields_and_wrong_types_are_named(body: dict[str, Any], field: str | None, words: str) -> None:
    """A 400 says in `fieldViolations` which field is wrong and where it stands."""
    with running(EmulatorSettings(latency_s=0)) as emulator:
        url = f"{emulator.url}/v1beta/models/{MODEL}:generateContent?key=k"
        reply = httpx2.post(url, json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["status"]) == (400, "INVALID_ARGUMENT")
        violation = error["details"][0]["fieldViolations"][0]
        assert violation.get("field") == field
        assert words in violation["description"]
        assert emulator.log() == []


async def test_values_that_the_service_refuses() -> None:
    """Ranges, roles, candidates and log-probabilities are checked as the service does."""
    async with asking() as (client, emulator):
        empty = httpx2.post(f"{emulator.url}/v1/models/{MODEL}:countTokens?key=k", json={"contents": []})
        assert "contents is not specified" in empty.json()["error"]["message"]
        for config, words in (
            ({"temperature": 3}, "temperature must be in the range"),
            ({"max_output_tokens": 100_000}, "maxOutputTokens value of 100000"),
            ({"candidate_count": 2}, "Multiple candidates"),
            ({"response_logprobs": True}, f"Logprobs is not enabled for models/{MODEL}"),
        ):
            error = await refused(client, **config)
            assert (error.code, words in error.message) == (400, True), error.message
        with pytest.raises(errors.ClientError, match="valid role"):
            client.models.generate_content(model=MODEL, contents=[types.Content(role="system", parts=[{"text": "x"}])])
        with pytest.raises(ValueError, match="contents are required"):  # the SDK is before the service here
            client.models.generate_content(model=MODEL, contents=[])
        with pytest.raises(errors.ClientError) as unknown:
            client.models.generate_content(model="gemini-9", contents="Q")
    assert (unknown.value.code, unknown.value.status) == (404, "NOT_FOUND")
    assert "models/gemini-9 is not found for API version v1, " in unknown.value.message


async def test_batch_503_is_refused_before_a_job_is_made() -> None:
    """`batch-503` strikes create and get, and leaves no job behind."""
    async with asking(faults={"batch-503": 1}) as (client, emulator):
        source = [types.InlinedRequest(contents="Q")]
        with pytest.raises(errors.ServerError):
            client.batches.create(model=MODEL, src=source)
        with pytest.raises(errors.ServerError):
            client.batches.get(name="batches/any")
        assert list(client.batches.list()) == []
    assert [entry.status for entry in emulator.log()] == [503]


async def test_a_body_above_20_mib_is_refused() -> None:
    """An inline body may not pass 20 MiB."""
    async with asking() as (client, _):
        with pytest.raises(errors.ClientError, match="payload size exceeds the limit: 20971520 bytes"):
            client.models.generate_content(model=MODEL, contents="x" * (21 * 2**20))
