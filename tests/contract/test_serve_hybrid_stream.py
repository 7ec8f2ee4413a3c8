"""A stream of `hybrid` over a real socket: it begins before the answer is there, and ends with its client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import openai
import pytest
from tests.contract.test_serve_hybrid_limits import HEADERS, Router
from tests.contract.test_serve_openai import KEY, QUESTION, Running

from potstill.config import ServeLimits
from potstill.serve.access import Keys
from potstill.serve.app import Parts


class Writer(Router):
    """Says a first piece, then waits until it is released; knows whether it was cancelled meanwhile."""

    def __init__(self, first: str = "routed: ") -> None:
        super().__init__()
        self.first = first
        self.released = threading.Event()
        self.cancelled = threading.Event()

    async def write(self, tell: Callable[[str], None]) -> None:
        """Wait between the first piece and the rest."""
        tell(self.first)
        try:
            while not await asyncio.to_thread(self.released.wait, 0.05):
                pass
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@contextmanager
def serving(router: Router, folder: Path) -> Iterator[openai.OpenAI]:
    """A client of a server with this router."""
    running = Running(folder, ServeLimits(), Parts(keys=Keys((KEY,)), router=lambda _: lambda: nullcontext(router)))
    try:
        with running.client() as client:
            yield client
    finally:
        running.stop()


def test_text_arrives_while_it_is_written(tmp_path: Path) -> None:
    """The first piece is there before the router has finished; route and cost come with the last one."""
    router = Writer()
    with (
        serving(router, tmp_path) as client,
        client.chat.completions.create(model="hybrid", messages=QUESTION, stream=True) as stream,
    ):
        said, last = "", None
        for chunk in stream:
            said += chunk.choices[0].delta.content or ""
            if said == "routed: ":
                seen = httpx.get(str(client.base_url.join("/metrics")), headers=HEADERS, trust_env=False).text
                assert 'potstill_time_to_first_token_seconds_count{model="hybrid"} 1.0' in seen
                router.released.set()
            last = chunk
        assert said == "routed: hello"
        assert last is not None
        assert last.choices[0].finish_reason == "stop"
        assert last.choices[0].potstill["route"] == "student"


def test_client_that_leaves_ends_the_question(tmp_path: Path) -> None:
    """When the client goes away in the middle of a stream, the router's work is cancelled."""
    router = Writer()
    with serving(router, tmp_path) as client:
        with client.chat.completions.create(model="hybrid", messages=QUESTION, stream=True) as stream:
            assert any(chunk.choices[0].delta.content for chunk in stream)
        assert router.cancelled.wait(20)


def test_stream_that_broke_is_an_error(tmp_path: Path) -> None:
    """Text that was sent cannot be taken back: where the answer became another one, the stream ends in an error."""
    router = Writer(first="something else")
    router.released.set()
    with (
        serving(router, tmp_path) as client,
        client.chat.completions.create(model="hybrid", messages=QUESTION, stream=True) as stream,
        pytest.raises(openai.APIError, match="broke off"),
    ):
        list(stream)
