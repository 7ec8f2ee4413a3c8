"""Every failure that potstill expects, with the exit code that scripts see and the next step for the reader.

    PotstillError
    ├── UsageError                 2  a wrong option, config value or input file
    │   ├── ConfigError               an unknown key, a value out of range, an unreadable config file
    │   ├── InputError                a prompt, role, dataset or query file that cannot be read; names file and line
    │   └── UnknownModelError         a model, service or date without a price: refused, never priced at zero
    ├── KeyRefusedError            3  no API key, or one that the teacher refuses
    ├── BudgetError                4  stopped before the budget would be passed, or an estimate above the limit
    ├── QuotaError                 5  the quota is spent for now; `retry_at` says when to come back
    ├── PartialError               6  finished, but some items failed; they are listed, a rerun retries just them
    ├── MachineError               7  this machine cannot do it: GPU, memory, disk, a missing extra, a busy port
    ├── QualityGateError           8  a quality gate said no
    └── TeacherError               6  one call to the teacher failed for good; stages turn it into a PartialError

Exit code 1 is kept for bugs, 130 for an interrupt. A programmer's error (TypeError, KeyError ...) is never relabelled.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar


class PotstillError(Exception):
    """Base of every expected failure.

    `exit_code` belongs to the class, `hint` (what to do about it) to the instance.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(PotstillError):
    """The command was asked for something it cannot read or does not know."""

    exit_code = 2


class ConfigError(UsageError):
    """The config names an unknown key or carries a value out of range."""


class InputError(UsageError):
    """An input file is missing, empty or malformed; the message names file, line and field."""


class UnknownModelError(UsageError):
    """There is no price for this model, service and date, so the call is refused."""


class KeyRefusedError(PotstillError):
    """The API key is missing, or the teacher refused it."""

    exit_code = 3


class BudgetError(PotstillError):
    """The next request could pass the budget, or an estimate is above the limit."""

    exit_code = 4


class QuotaError(PotstillError):
    """The teacher's quota is spent for now."""

    exit_code = 5

    def __init__(self, message: str, *, retry_at: datetime | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_at = retry_at


class PartialError(PotstillError):
    """The run finished, but some items failed."""

    exit_code = 6


class TeacherError(PotstillError):
    """One call to the teacher failed for good; `reason` is the machine-readable cause."""

    exit_code = 6

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class MachineError(PotstillError):
    """The machine lacks what the command needs."""

    exit_code = 7


class QualityGateError(PotstillError):
    """A quality gate said no."""

    exit_code = 8
