"""Batches: create, get, list, cancel, delete.

Source: the Gemini API's `GenerateContentBatch`, shown as a `google.longrunning.Operation`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from potstill.teacher.emulator.checks import camel_keys
from potstill.teacher.emulator.faults import Faults
from potstill.teacher.emulator.files import Files
from potstill.teacher.emulator.jobs import Job, Line, Worker
from potstill.teacher.emulator.journal import Journal
from potstill.teacher.emulator.models import page
from potstill.teacher.emulator.refusals import Refusal, bad_request, no_file, not_found, of_fault, over_batch_quota
from potstill.teacher.emulator.replies import Asked
from potstill.teacher.emulator.sending import abort, refuse
from potstill.teacher.emulator.settings import EmulatorSettings


class Batches:
    """The batches of one emulator."""

    def __init__(self, settings: EmulatorSettings, worker: Worker, files: Files, faults: Faults) -> None:
        self._settings = settings
        self._worker = worker
        self._files = files
        self._faults = faults
        self._jobs: dict[str, Job] = {}

    @property
    def _journal(self) -> Journal:
        return self._worker.billing.journal

    def route(self, app: web.Application) -> None:
        """Add the routes; creating is a method of the model."""
        for version in ("v1", "v1beta"):
            app.router.add_get(f"/{version}/batches", self._list)
            app.router.add_get(f"/{version}/batches/{{id:[^/:]+}}", self._show)
            app.router.add_delete(f"/{version}/batches/{{id:[^/:]+}}", self._delete)
            app.router.add_post(f"/{version}/batches/{{id:[^/:]+}}:cancel", self._cancel)

    async def create(self, request: web.Request, model: str, body: dict[str, Any]) -> web.Response:
        """Take a batch on. The fault `batch-lost` takes it on and loses the reply."""
        asked = Asked(model, {"contents": [], "batch": body})
        if self._faults.hits("batch-503"):
            return self._refused(asked, of_fault("http-503"))
        read = self._read(model, body)
        if isinstance(read, Refusal):
            return self._refused(asked, read)
        if (refusal := self._over(read)) is not None:
            return self._refused(asked, refusal)
        self._jobs[read.name] = read
        lost = self._faults.hits("batch-lost")
        self._journal.write(
            asked, "batchGenerateContent", 200, service="batch", job=read.name, fault="batch-lost" if lost else None
        )
        self._worker.start(read, self._faults.of_job())
        if lost:
            return abort(request)
        return web.json_response(read.shown())

    async def close(self) -> None:
        """Stop what runs."""
        for job in self._jobs.values():
            await job.stop()

    def _read(self, model: str, body: dict[str, Any]) -> Job | Refusal:
        batch = camel_keys(body.get("batch") or {})
        source = camel_keys(batch.get("inputConfig") or {})
        name = str(batch.get("displayName") or "")
        if "fileName" in source:
            stored = self._files.get(str(source["fileName"]))
            if stored is None:
                return no_file(str(source["fileName"]))
            lines = [Line(raw) for raw in stored.data.splitlines() if raw.strip()]
            job = Job(model, name, source, lines)
        else:
            given = (source.get("requests") or {}).get("requests")
            if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
                return bad_request("* BatchGenerateContentRequest.batch.input_config: no requests\n")
            job = Job(model, name, None, [Line(item) for item in given])
        return job if job.lines else bad_request("* BatchGenerateContentRequest.batch.input_config: no requests\n")

    def _over(self, job: Job) -> Refusal | None:
        """The refusal where too much is enqueued already."""
        unfinished = [other for other in self._jobs.values() if not other.done]
        if len(unfinished) >= self._settings.batch_jobs:
            return over_batch_quota()
        if self._settings.batch_tokens is None:
            return None
        job.tokens = sum(line.input_tokens for line in job.lines)
        enqueued = sum(other.tokens for other in unfinished if other.model == job.model)
        return over_batch_quota() if enqueued + job.tokens > self._settings.batch_tokens else None

    def _refused(self, asked: Asked, refusal: Refusal) -> web.Response:
        self._journal.write(asked, "batchGenerateContent", refusal.status, service="batch", fault=refusal.message)
        return refuse(refusal)

    async def _list(self, request: web.Request) -> web.Response:
        try:
            chosen, following = page([*reversed(self._jobs.values())], dict(request.query), 10)
        except ValueError:
            return refuse(bad_request("Invalid page size or page token."))
        operations = [job.shown(results=False) for job in chosen]
        return web.json_response({"operations": operations, **({"nextPageToken": following} if following else {})})

    async def _show(self, request: web.Request) -> web.Response:
        return self._with_job(
            request, lambda job: web.Response(text=json.dumps(job.shown()), content_type="application/json")
        )

    async def _cancel(self, request: web.Request) -> web.Response:
        job = self._jobs.get(f"batches/{request.match_info['id']}")
        if job is None:
            return refuse(not_found())
        if job.done:
            return refuse(bad_request(f"Batch {job.name} is in state {job.state} and cannot be cancelled."))
        await job.stop()
        return web.json_response({})

    async def _delete(self, request: web.Request) -> web.Response:
        job = self._jobs.pop(f"batches/{request.match_info['id']}", None)
        if job is None:
            return refuse(not_found())
        await job.stop()
        return web.json_response({})

    def _with_job(self, request: web.Request, act: Callable[[Job], web.Response]) -> web.Response:
        if self._faults.hits("batch-503"):
            return refuse(of_fault("http-503"))
        job = self._jobs.get(f"batches/{request.match_info['id']}")
        return refuse(not_found()) if job is None else act(job)
