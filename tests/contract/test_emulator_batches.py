"""Files and batches of the emulator, through the real google-genai SDK."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from google import genai
from google.genai import errors, types

from potstill.records import Usage
from potstill.teacher.emulator import EmulatorSettings, Running, running

pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
MODEL = "gemini-3.5-flash-lite"


def client_of(emulator: Running) -> genai.Client:
    """The SDK, pointed at an emulator."""
    options = types.HttpOptions(base_url=emulator.url, retry_options=types.HttpRetryOptions(attempts=1))
    return genai.Client(api_key="any-text", vertexai=False, http_options=options)


def line(key: str, question: str) -> dict[str, Any]:
    """One line of a batch's input file."""
    return {
        "key": key,
        "request": {
            "contents": [{"role": "user", "parts": [{"text": question}]}],
            "generationConfig": {"maxOutputTokens": 200},
        },
    }


def upload(client: genai.Client, lines: list[dict[str, Any]]) -> str:
    """Upload lines as a file; gives its name."""
    data = io.BytesIO("".join(json.dumps(item) + "\n" for item in lines).encode())
    config = types.UploadFileConfig(mime_type="application/jsonl", display_name="input")
    return str(client.files.upload(file=data, config=config).name)


def finished(client: genai.Client, name: str) -> types.BatchJob:
    """The job, when it has ended."""
    for _ in range(600):
        job = client.batches.get(name=name)
        if job.done:
            return job
        time.sleep(0.02)
    message = f"{name} never ended"
    raise AssertionError(message)


def billed(emulator: Running) -> Usage:
    """All tokens in the request log."""
    return sum((entry.billed for entry in emulator.log()), Usage())


def usage_of(responses: list[dict[str, Any]]) -> Usage:
    """The tokens that answers say they used."""
    counts = [response["usageMetadata"] for response in responses]
    return Usage(
        input_tokens=sum(count["promptTokenCount"] for count in counts),
        output_tokens=sum(count["candidatesTokenCount"] for count in counts),
    )


@pytest.fixture
def emulator() -> Iterator[Running]:
    """An emulator whose batches take a moment."""
    with running(EmulatorSettings(faq="hardware.en", latency_s=0, batch_pending_s=0.02, batch_s=0.05)) as found:
        yield found


def test_a_file_batch_from_upload_to_download(emulator: Running) -> None:
    """Each line comes back under its key in the order of the input, and the log bills what the answers say."""
    client = client_of(emulator)
    name = upload(client, [line(f"r{number}", f"What does quantization do, part {number}?") for number in range(30)])
    job = client.batches.create(model=MODEL, src=name, config={"display_name": "run-1"})
    assert job.name is not None
    assert job.state == types.JobState.JOB_STATE_PENDING
    done = finished(client, job.name)
    assert done.state == types.JobState.JOB_STATE_SUCCEEDED
    assert (done.display_name, done.model, done.dest.file_name[:12]) == ("run-1", f"models/{MODEL}", "files/batch-")
    results = [json.loads(text) for text in client.files.download(file=done.dest.file_name).splitlines()]
    assert [result["key"] for result in results] == [f"r{number}" for number in range(30)]
    lines = [entry for entry in emulator.log() if entry.method == "generateContent"]
    assert {(entry.service, entry.job) for entry in lines} == {("batch", job.name)}
    assert [entry.key for entry in lines] == [result["key"] for result in results]
    assert billed(emulator) == usage_of([result["response"] for result in results])
    assert billed(emulator).output_tokens > 0


def test_inline_batch_gives_answers_and_line_errors(emulator: Running) -> None:
    """Inline requests are answered in place; one that the service refuses has an error of its own and bills nothing."""
    client = client_of(emulator)
    source = [
        types.InlinedRequest(contents="Is 8 GB enough?", metadata={"key": "good"}),
        types.InlinedRequest(
            contents="Too hot", metadata={"key": "bad"}, config=types.GenerateContentConfig(temperature=9)
        ),
    ]
    created = client.batches.create(model=MODEL, src=source)
    done = finished(client, str(created.name))
    good, bad = done.dest.inlined_responses
    assert good.metadata == {"key": "good"}
    assert good.response.text
    assert (bad.error.code, bad.response) == (400, None)
    assert "temperature" in bad.error.message
    raw = httpx2.get(f"{emulator.url}/v1/{created.name}", headers={"x-goog-api-key": "k"}).json()
    assert raw["metadata"]["batchStats"] == {
        "requestCount": "2",
        "successfulRequestCount": "1",
        "failedRequestCount": "1",
    }
    assert sum(entry.billed.output_tokens > 0 for entry in emulator.log()) == 1


async def test_the_async_client_does_the_same(emulator: Running) -> None:
    """Upload, create, list in pages, download and delete through the SDK's async half."""
    client = client_of(emulator).aio
    data = io.BytesIO(json.dumps(line("a", "How much memory?")).encode())
    file = await client.files.upload(file=data, config=types.UploadFileConfig(mime_type="application/jsonl"))
    jobs = [await client.batches.create(model=MODEL, src=str(file.name)) for _ in range(3)]
    for job in jobs:
        await asyncio.to_thread(finished, client_of(emulator), str(job.name))
    pager = await client.batches.list(config={"page_size": 2})
    assert len(pager.page) == 2
    listed = [job.name async for job in pager]
    assert listed == [job.name for job in reversed(jobs)]
    dest = (await client.batches.get(name=str(jobs[0].name))).dest
    assert json.loads(await client.files.download(file=dest.file_name))["key"] == "a"
    await client.batches.delete(name=str(jobs[0].name))
    with pytest.raises(errors.ClientError) as gone:
        await client.batches.get(name=str(jobs[0].name))
    assert (gone.value.code, gone.value.status) == (404, "NOT_FOUND")
    await client.aclose()


def test_files_get_list_delete_and_what_may_be_downloaded(emulator: Running, tmp_path: Any) -> None:
    """A file uploaded from disk in several chunks arrives whole; only results can be downloaded; a deleted one is gone."""
    client = client_of(emulator)
    path = tmp_path / "big.jsonl"
    path.write_bytes(b"x" * (9 * 2**20))
    file = client.files.upload(file=path, config=types.UploadFileConfig(mime_type="application/jsonl"))
    assert (file.size_bytes, file.state, file.source) == (9 * 2**20, "ACTIVE", "UPLOADED")
    assert [found.name for found in client.files.list()] == [file.name]
    assert client.files.get(name=str(file.name)).sha256_hash == file.sha256_hash
    with pytest.raises(errors.ClientError, match="Only generated files"):
        client.files.download(file=str(file.name))
    client.files.delete(name=str(file.name))
    with pytest.raises(errors.ClientError) as gone:
        client.files.get(name=str(file.name))
    assert gone.value.code == 403


def test_an_interrupted_upload_goes_on_where_it_stopped(emulator: Running) -> None:
    """`query` says how much arrived; a chunk at the wrong offset is refused and leaves the upload as it was."""
    start = {
        "x-goog-api-key": "k",
        "X-Goog-Upload-Command": "start",
        "X-Goog-Upload-Protocol": "resumable",
        "X-Goog-Upload-Header-Content-Length": "10",
    }
    begun = httpx2.post(f"{emulator.url}/upload/v1beta/files", headers=start, json={"file": {}})
    url = begun.headers["x-goog-upload-url"]
    part = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0"}
    assert httpx2.post(url, headers=part, content=b"12345").headers["x-goog-upload-status"] == "active"
    assert httpx2.post(url, headers=part, content=b"12345").status_code == 400
    asked = httpx2.post(url, headers={"X-Goog-Upload-Command": "query"})
    assert asked.headers["x-goog-upload-size-received"] == "5"
    last = {"X-Goog-Upload-Command": "upload, finalize", "X-Goog-Upload-Offset": "5"}
    done = httpx2.post(url, headers=last, content=b"67890")
    assert done.headers["x-goog-upload-status"] == "final"
    assert done.json()["file"]["sizeBytes"] == "10"


@pytest.mark.parametrize("partial", [False, True])
def test_a_cancelled_batch_bills_what_it_did(partial: bool) -> None:
    """Lines answered before the cancel stay billed; results of them are handed out only where that is switched on."""
    settings = EmulatorSettings(batch_pending_s=0, batch_s=20, batch_partial=partial)
    with running(settings) as emulator:
        client = client_of(emulator)
        job = client.batches.create(model=MODEL, src=upload(client, [line(f"r{n}", f"Q{n}") for n in range(400)]))
        while billed(emulator).output_tokens == 0:
            time.sleep(0.02)
        client.batches.cancel(name=str(job.name))
        done = client.batches.get(name=str(job.name))
        assert done.state == types.JobState.JOB_STATE_CANCELLED
        count = len(emulator.log()) - 1
        assert 0 < count < 400
        if partial:
            assert len(client.files.download(file=done.dest.file_name).splitlines()) == count
        else:
            assert done.dest is None
        with pytest.raises(errors.ClientError):
            client.batches.cancel(name=str(job.name))


@pytest.mark.parametrize(
    ("fault", "state"),
    [("batch-failed", "JOB_STATE_FAILED"), ("batch-expired", "JOB_STATE_EXPIRED")],
)
def test_batches_that_go_wrong(fault: str, state: str) -> None:
    """A batch can fail as a whole, and can expire halfway: billed for half, with nothing to fetch."""
    with running(EmulatorSettings.model_validate({"faults": {fault: 1}, "batch_s": 0.02})) as emulator:
        client = client_of(emulator)
        job = client.batches.create(model=MODEL, src=upload(client, [line(f"r{n}", f"Q{n}") for n in range(10)]))
        done = finished(client, str(job.name))
        assert (done.state, done.dest) == (state, None)
        lines = [entry for entry in emulator.log() if entry.method == "generateContent"]
        assert len(lines) == (5 if fault == "batch-expired" else 0)


def test_a_stuck_batch_expires_at_its_time() -> None:
    """A batch that hangs is running until the expiry, then expired."""
    faults = {"batch-stuck": 1.0}
    settings = EmulatorSettings.model_validate({"faults": faults, "batch_pending_s": 0, "batch_expiry_s": 0.3})
    with running(settings) as emulator:
        client = client_of(emulator)
        job = client.batches.create(model=MODEL, src=upload(client, [line("a", "Q")]))
        assert client.batches.get(name=str(job.name)).state in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING")
        assert finished(client, str(job.name)).state == "JOB_STATE_EXPIRED"


def test_a_create_whose_reply_is_lost_made_a_job() -> None:
    """After `batch-lost` the client knows no name, yet the job runs, is billed, and can be found in the list."""
    with running(EmulatorSettings.model_validate({"faults": {"batch-lost": 1}, "batch_s": 0.02})) as emulator:
        client = client_of(emulator)
        with pytest.raises(httpx2.HTTPError):
            client.batches.create(model=MODEL, src=upload(client, [line("a", "Q")]), config={"display_name": "mine"})
        found = [job for job in client.batches.list() if job.display_name == "mine"]
        assert finished(client, str(found[0].name)).state == "JOB_STATE_SUCCEEDED"
        assert billed(emulator).output_tokens > 0


def test_limits_of_batches() -> None:
    """Too many unfinished batches, or too many tokens in them, are a 429 that has a Help and no advice to wait."""
    with running(EmulatorSettings(batch_s=30, batch_jobs=1)) as emulator:
        client = client_of(emulator)
        name = upload(client, [line("a", "Q")])
        client.batches.create(model=MODEL, src=name)
        with pytest.raises(errors.ClientError) as full:
            client.batches.create(model=MODEL, src=name)
    assert full.value.code == 429
    assert [detail["@type"].rsplit(".", 1)[1] for detail in full.value.details["error"]["details"]] == ["Help"]
    with running(EmulatorSettings(batch_tokens=20)) as emulator:
        client = client_of(emulator)
        with pytest.raises(errors.ClientError) as enqueued:
            client.batches.create(model=MODEL, src=upload(client, [line("a", "word " * 100)]))
    assert enqueued.value.code == 429


def test_a_malformed_file_fails_the_batch(emulator: Running) -> None:
    """A line that is not JSON ends the batch as failed; a file that is not there and an empty one are refused at once."""
    client = client_of(emulator)
    config = types.UploadFileConfig(mime_type="application/jsonl")
    name = str(client.files.upload(file=io.BytesIO(b"not json\n"), config=config).name)
    assert finished(client, str(client.batches.create(model=MODEL, src=name).name)).state == "JOB_STATE_FAILED"
    empty = str(client.files.upload(file=io.BytesIO(b"\n"), config=config).name)
    for source, code in ((empty, 400), ("files/nowhere", 403)):
        with pytest.raises(errors.ClientError) as refused:
            client.batches.create(model=MODEL, src=source)
        assert refused.value.code == code
