"""One batch, from the line that waits to the result that is billed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from potstill.teacher.emulator.answering import Answerer
from potstill.teacher.emulator.billing import Billing
from potstill.teacher.emulator.checks import camel, refused_body
from potstill.teacher.emulator.faults import HTTP, Faults
from potstill.teacher.emulator.files import Files, stamp
from potstill.teacher.emulator.refusals import Refusal, bad_request, of_fault
from potstill.teacher.emulator.replies import Asked
from potstill.teacher.emulator.settings import EmulatorSettings

TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main."
UNFINISHED = ("PENDING", "RUNNING")
BREATH = 50
"""Lines after which other requests get their turn."""


@dataclass
class Line:
    """One request of a batch, as it was given: a line of a file, or an object."""

    given: bytes | dict[str, Any]

    def read(self) -> dict[str, Any] | None:
        """The line parsed; None where it is not a JSON object."""
        if isinstance(self.given, dict):
            return self.given
        try:
            parsed = json.loads(self.given)
        except ValueError:
            return None
        return parsed if isinstance(parsed, dict) else None

    @property
    def input_tokens(self) -> int:
        """Input tokens; 0 for a line that will be refused."""
        request = (self.read() or {}).get("request")
        if not isinstance(request, dict) or refused_body("", camel(request)) is not None:
            return 0
        return Asked("", camel(request)).input_tokens


@dataclass
class Job:
    """A batch: what was asked, how far it is, and its results. `source` is None for one with inline requests."""

    model: str
    display_name: str
    source: dict[str, Any] | None
    lines: list[Line]
    name: str = field(default_factory=lambda: f"batches/{secrets.token_hex(10)}")
    state: str = "PENDING"
    tokens: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    error: Refusal | None = None
    output: dict[str, Any] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended: datetime | None = None
    task: asyncio.Task[None] | None = None

    @property
    def done(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.state not in UNFINISHED

    async def stop(self) -> None:
        """Cancel it, where it is not done, and wait until it has stopped."""
        if self.task is not None and not self.task.done():
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    def shown(self, *, results: bool = True) -> dict[str, Any]:
        """The batch as an Operation; a list shows it without results."""
        now = self.ended or datetime.now(UTC)
        metadata = {
            "@type": f"{TYPE}GenerateContentBatch",
            "model": f"models/{self.model}",
            "displayName": self.display_name,
            **({"inputConfig": self.source} if self.source else {}),
            "createTime": stamp(self.created),
            "updateTime": stamp(now),
            **({"endTime": stamp(self.ended)} if self.ended else {}),
            "batchStats": self._stats(),
            "state": f"BATCH_STATE_{self.state}",
            "name": self.name,
        }
        if self.output is None or not results:
            shown = {"name": self.name, "metadata": metadata, **({"done": True} if self.done else {})}
        else:
            response = {"@type": f"{TYPE}GenerateContentBatchOutput", **self.output}
            metadata = {**metadata, "output": self.output}
            shown = {"name": self.name, "metadata": metadata, "done": True, "response": response}
        return {**shown, "error": self.error.body["error"]} if self.error is not None else shown

    def _stats(self) -> dict[str, str]:
        counts = {
            "requestCount": len(self.lines),
            "successfulRequestCount": len(self.results) - self.failed,
            "failedRequestCount": self.failed,
            "pendingRequestCount": 0 if self.done else len(self.lines) - len(self.results),
        }
        return {name: str(count) for name, count in counts.items() if count}


@dataclass
class Worker:
    """Works batches off."""

    settings: EmulatorSettings
    answerer: Answerer
    billing: Billing
    files: Files
    faults: Faults

    def start(self, job: Job, fault: str | None) -> None:
        """Begin a batch that ends as `fault` says: well, never, failed, or expired halfway."""
        job.task = asyncio.create_task(self._run(job, fault))

    async def _run(self, job: Job, fault: str | None) -> None:
        try:
            async with asyncio.timeout(self.settings.batch_expiry_s):
                state = await self._work(job, fault)
        except TimeoutError:
            state = "EXPIRED"
        except asyncio.CancelledError:
            self._finish(job, "CANCELLED")
            raise
        self._finish(job, state)

    async def _work(self, job: Job, fault: str | None) -> str:
        """Answer the lines, evenly over the time that a batch takes; gives the state that it ends in."""
        await asyncio.sleep(self.settings.batch_pending_s)
        job.state = "RUNNING"
        if fault == "batch-stuck":
            await asyncio.Event().wait()
        if fault == "batch-failed":
            job.error = of_fault("http-500")
            return "FAILED"
        loop = asyncio.get_running_loop()
        began, step_s = loop.time(), self.settings.batch_s / len(job.lines)
        until = len(job.lines) // 2 if fault == "batch-expired" else len(job.lines)
        for number, line in enumerate(job.lines[:until], start=1):
            parsed = line.read()
            if parsed is None:
                job.error = bad_request(f"Line {number} of the input file is not a JSON object.")
                return "FAILED"
            self._answer(job, parsed)
            ahead_s = began + number * step_s - loop.time()
            if ahead_s > 0 or number % BREATH == 0:
                await asyncio.sleep(max(0.0, ahead_s))
        return "EXPIRED" if fault == "batch-expired" else "SUCCEEDED"

    def _answer(self, job: Job, line: dict[str, Any]) -> None:
        """Answer one line and bill it; a line that is refused is not billed and gets an error of its own."""
        named: dict[str, Any] = {name: line[name] for name in ("key", "metadata") if name in line}
        key = str(line.get("key") or (line.get("metadata") or {}).get("key") or "") or None
        request = line.get("request")
        body = camel(request) if isinstance(request, dict) else {}
        asked, fault = Asked(job.model, body), self.faults.of_line()
        refusal = of_fault(fault) if fault in HTTP else refused_body(job.model, body)
        if refusal is not None:
            self.billing.journal.write(
                asked, "generateContent", refusal.status, service="batch", job=job.name, key=key, fault=fault
            )
            job.failed += 1
            job.results.append({**named, "error": {"code": refusal.status, "message": refusal.message}})
            return
        answered = self.answerer.answer(asked, fault)
        self.billing.bill(asked, "generateContent", answered, service="batch", job=job.name, key=key, fault=fault)
        job.results.append({**named, "response": answered.body})

    def _finish(self, job: Job, state: str) -> None:
        job.state, job.ended = state, datetime.now(UTC)
        whole = state == "SUCCEEDED"
        if not whole and not (self.settings.batch_partial and job.results):
            return
        if job.source is None:
            job.output = {"inlinedResponses": {"inlinedResponses": job.results}}
            return
        name = f"files/batch-{job.name.removeprefix('batches/')}"
        data = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in job.results)
        self.files.add(name, data.encode(), job.display_name)
        job.output = {"responsesFile": name}
