"""The batch service over the wire, through Gemini's own SDK: files and jobs, one attempt a call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr

from potstill.config import TeacherConfig
from potstill.teacher.transport import Received, gemini_client, received_error

Result = TypeVar("Result")

NOT_BEGUN = frozenset({"QUEUED", "PENDING"})
ENDED = frozenset({"SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED"})
PAGE = 100


class CallFailedError(Exception):
    """A call about a file or a job failed; `received` is what came back."""

    def __init__(self, received: Received) -> None:
        super().__init__(received.lost or f"http {received.status}")
        self.received = received


@dataclass(frozen=True)
class JobView:
    """A job as the teacher shows it: its state without prefix, and the file with its results.

    A state of tomorrow counts as under way.
    """

    name: str
    label: str
    state: str
    output_file: str | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ENDED

    @property
    def begun(self) -> bool:
        """Whether lines of it may have been answered."""
        return self.state not in NOT_BEGUN


class BatchService:
    """Files and batch jobs of one project. Every method raises CallFailedError for what the wire or the server does."""

    def __init__(self, teacher: TeacherConfig, key: SecretStr) -> None:
        self._client = gemini_client(teacher, key)
        self._timeout_s = teacher.timeout_s

    async def upload(self, path: Path, label: str) -> str:
        """Upload a JSON Lines file; gives the teacher's name for it."""
        config = {"mime_type": "application/jsonl", "display_name": label}
        file = await self._call(self._client.aio.files.upload(file=path, config=config))
        return str(file.name)

    async def create(self, model: str, file: str, label: str) -> JobView:
        """Create a job from an uploaded file."""
        return _view(
            await self._call(self._client.aio.batches.create(model=model, src=file, config={"display_name": label}))
        )

    async def get(self, name: str) -> JobView:
        """A job by the teacher's name for it."""
        return _view(await self._call(self._client.aio.batches.get(name=name)))

    async def find(self, label: str) -> JobView | None:
        """The job that was created with a label, if there is one."""

        async def look() -> JobView | None:
            async for job in await self._client.aio.batches.list(config={"page_size": PAGE}):
                if job.display_name == label:
                    return _view(job)
            return None

        return await self._call(look())

    async def download(self, file: str) -> bytes:
        """A file's bytes."""
        return bytes(await self._call(self._client.aio.files.download(file=file)) or b"")

    async def delete(self, file: str) -> None:
        """Delete a file."""
        await self._call(self._client.aio.files.delete(name=file))

    async def cancel(self, name: str) -> None:
        """Ask for a job to be cancelled."""
        await self._call(self._client.aio.batches.cancel(name=name))

    async def close(self) -> None:
        """Close the SDK's connections."""
        await self._client.aio.aclose()

    async def _call(self, call: Awaitable[Result]) -> Result:
        try:
            async with asyncio.timeout(self._timeout_s + 5):
                return await call
        except Exception as error:
            received = received_error(error)
            if received is None:
                raise
            raise CallFailedError(received) from error


def _view(job: Any) -> JobView:
    state = getattr(job.state, "value", None) or str(job.state or "UNSPECIFIED")
    return JobView(
        name=str(job.name),
        label=str(job.display_name or ""),
        state=state.removeprefix("JOB_STATE_").removeprefix("BATCH_STATE_"),
        output_file=job.dest.file_name if job.dest else None,
        error=job.error.message if job.error else None,
    )
