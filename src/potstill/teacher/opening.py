"""The teacher of a config, opened with its ledger, prices and transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

from potstill.config import Config, Secrets
from potstill.errors import ConfigError, InputError, TeacherError
from potstill.ledger import Cap, Ledger
from potstill.pricing.book import load_prices
from potstill.teacher.batch import Batcher
from potstill.teacher.batch_service import BatchService
from potstill.teacher.calls import Answer, TeacherRequest
from potstill.teacher.connect import check_teacher, connect
from potstill.teacher.paid import Accounts, PaidTeacher, stored_answer
from potstill.teacher.presets import check_service
from potstill.workspace import Workspace


class OfflineTeacher:
    """Answers from the ledger alone; there is no transport that it could send anything with."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def ask(self, request: TeacherRequest) -> Answer:
        """What was paid for earlier; raises TeacherError where nothing was."""
        answer = stored_answer(self.ledger, request)
        if answer is None:
            message = "not in the ledger, and --offline asks nobody"
            raise TeacherError(message, reason="offline")
        return answer

    def stop(self) -> None:
        """Nothing is in flight."""


@asynccontextmanager
async def open_offline(config: Config, workspace: Workspace) -> AsyncIterator[OfflineTeacher]:
    """The ledger as a teacher; needs no key. Raises InputError where the workspace has no ledger."""
    if not workspace.ledger.is_file():
        message = f"no ledger at {workspace.ledger}: there is nothing to answer from"
        raise InputError(message, hint="nothing was paid for in this workspace yet; is -w/--workspace right?")
    with Ledger.open(workspace.ledger, config.budget.max_usd) as ledger:
        yield OfflineTeacher(ledger)


@asynccontextmanager
async def open_teacher(
    config: Config,
    secrets: Secrets,
    workspace: Workspace,
    *,
    command: str,
    max_requests: int | None = None,
    cap: Cap | None = None,
) -> AsyncIterator[PaidTeacher]:
    """The teacher of a config, with the workspace's ledger; raises KeyRefusedError where there is no key."""
    if config.teacher.service == "batch":
        message = "teacher.service: batch answers within a day; only `generate` can wait for it"
        raise ConfigError(message, hint="use standard, or flex at the same price")
    check_teacher(config.teacher, secrets)
    with _accounts(config, workspace, command, cap) as accounts:
        transport = connect(config.teacher, secrets)
        try:
            yield PaidTeacher(config.teacher, accounts, transport, max_requests=max_requests)
        finally:
            await transport.close()


@asynccontextmanager
async def open_batcher(
    config: Config, secrets: Secrets, workspace: Workspace, *, command: str
) -> AsyncIterator[Batcher]:
    """The batch service of a config's teacher, with the workspace's ledger; raises KeyRefusedError without a key."""
    teacher = config.teacher.model_copy(update={"service": "batch"})  # also where batches are only cancelled
    check_teacher(teacher, secrets)
    key = secrets.teacher_key
    assert key is not None, "check_teacher has seen to it"
    with _accounts(config, workspace, command) as accounts:
        service = BatchService(teacher, key)
        try:
            yield Batcher(teacher, accounts, service, workspace.batches)
        finally:
            await service.close()


@contextmanager
def _accounts(config: Config, workspace: Workspace, command: str, cap: Cap | None = None) -> Iterator[Accounts]:
    """Ledger and prices; a model without a price, or a service that the tier has not, is refused before anything is sent."""
    workspace.create()
    book = load_prices(config.prices)
    check_service(book, config.teacher, datetime.now(UTC).date())
    with Ledger.open(workspace.ledger, config.budget.max_usd) as ledger:
        yield Accounts(ledger, book, command, cap)
