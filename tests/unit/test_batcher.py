"""Batch jobs against a service that gives a drawn result file: what each line comes to in the ledger."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from potstill.config import PricesConfig, TeacherConfig
from potstill.ledger import Ledger
from potstill.pricing.book import load_prices
from potstill.records import Message
from potstill.teacher.batch import Batcher
from potstill.teacher.batch_service import JobView
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.paid import Accounts
from potstill.teacher.scripted import reply_200

TEACHER = TeacherConfig(rpm=None, batch_poll_s=0.01)
PRICES = load_prices(PricesConfig(overrides={TEACHER.model: {"input": Decimal(1), "output": Decimal(10)}}))


def request(text: str) -> TeacherRequest:
    """A question that may be answered with a hundred tokens."""
    return build_request(TEACHER, [Message(role="user", content=text)], temperature=1, max_output_tokens=100)


class Service:
    """A batch service that is done at once; each line of the job gets the next reply."""

    def __init__(self, replies: list[dict[str, Any]]) -> None:
        self._replies = replies
        self._keys: list[str] = []

    async def upload(self, path: Path, _label: str) -> str:
        """Keep the keys."""
        lines = await asyncio.to_thread(path.read_text)
        self._keys = [json.loads(line)["key"] for line in lines.splitlines()]
        return "files/in"

    async def create(self, _model: str, _file: str, label: str) -> JobView:
        """Begin, and end."""
        return JobView("batches/1", label, "SUCCEEDED", output_file="files/out")

    async def get(self, name: str) -> JobView:
        """It has ended."""
        return JobView(name, "", "SUCCEEDED", output_file="files/out")

    async def download(self, _file: str) -> bytes:
        """The replies, a line each."""
        rows = zip(self._keys, self._replies, strict=True)
        return "\n".join(json.dumps({"key": key, "response": reply}) for key, reply in rows).encode()

    async def delete(self, _file: str) -> None:
        """Nothing is kept."""


async def test_a_line_that_counts_nothing_costs_what_was_reserved(tmp_path: Path) -> None:
    """As for a call by itself: an answer without usage is kept, at its worst case and not for nothing."""
    replies = [reply_200("yes", input_tokens=0, output_tokens=0), reply_200("half \ud83d", input_tokens=3)]
    with Ledger.open(tmp_path / "ledger.sqlite3") as ledger:
        service = Service([json.loads(reply.body) for reply in replies])
        batcher = Batcher(TEACHER, Accounts(ledger, PRICES, "generate"), service, tmp_path)  # type: ignore[arg-type]
        job, reserved = await batcher.plan([request("a"), request("b")])
        assert reserved == 2
        held = {row.key: row.reserved_usd for row in ledger.attempts()}
        result = await batcher.run(job)
        assert (result.answered, result.failed) == (2, {})
        first, second = ledger.attempts()
        assert first.cost_usd == held[first.key] > Decimal("0.001")
        assert second.cost_usd < held[second.key]
        assert ledger.reserved() == 0
