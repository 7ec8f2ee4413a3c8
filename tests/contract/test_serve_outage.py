"""A server whose engine breaks, and whose fresh ones break too until the cause is gone."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import openai
import pytest
import torch
from tests.contract.test_serve_openai import QUESTION, Running
from tests.tiny import tiny_model, tiny_tokenizer

from potstill.config import ServeLimits
from potstill.student.local import LocalStudent, Persona
from potstill.student.manifest import StudentRole

ROLE = "hardware-expert"


def test_a_server_outlives_an_engine_that_cannot_be_replaced(tmp_path: Path) -> None:
    """Weights that are gone end the running stream with a word; until they are back it is not ready, and says why."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    student = LocalStudent(Persona("student", (StudentRole(name=ROLE, system="Be brief."),)), model, tokenizer, "sha")
    server = Running(tmp_path, ServeLimits(max_batch=4, max_queue=4), student=student)
    embeddings = model.get_input_embeddings().weight
    kept, gone = embeddings.data, torch.empty(0, embeddings.shape[1])
    try:
        with server.client() as client, httpx.Client(base_url=server.url) as plain:

            def ask() -> str:
                answer = client.chat.completions.create(model=ROLE, messages=QUESTION, max_tokens=8)
                return answer.choices[0].message.content

            before = ask()
            stream = client.chat.completions.create(model=ROLE, messages=QUESTION, max_tokens=1000, stream=True)
            next(iter(stream))
            embeddings.data = gone
            with pytest.raises(openai.APIError, match="the engine failed"):
                list(stream)
            not_ready = until(plain, 503)
            with pytest.raises(openai.InternalServerError) as refused:
                ask()
            assert plain.get("/health").status_code == 200
            embeddings.data = kept
            until(plain, 200)
            assert ask() == before
    finally:
        embeddings.data = kept
        server.stop()
    assert refused.value.status_code == 503
    assert not_ready.json()["reason"] == "the engine failed (AssertionError), and no fresh one answers yet"
    assert refused.value.code == "engine_failed"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30


def until(client: httpx.Client, status: int) -> httpx.Response:
    """Readiness with this status, as soon as it has it."""
    give_up = time.monotonic() + 60
    while (ready := client.get("/ready")).status_code != status:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    return ready
