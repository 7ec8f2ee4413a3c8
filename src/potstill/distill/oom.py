"""Running out of memory costs a step's time, never the run: the step is done again in smaller micro-batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.distill.packing import Document
from potstill.errors import MachineError
from potstill.files import write_atomic

Admit = Callable[[int], None]
"""Told the tokens of a micro-batch before it runs; may raise torch.OutOfMemoryError to refuse it."""


def admit_all(tokens: int) -> None:
    """Refuse nothing: the allocator says when memory is spent."""


SPENT = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
"""What a RuntimeError says where memory ran out past CUDA's own allocator: on a CPU, in cuBLAS, in the driver."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's for spent memory: a class of its own where CUDA's allocator refuses, else `SPENT`."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in SPENT)


@dataclass
class TokenLimit:
    """The largest micro-batch that fits, in tokens; None while nothing has failed. Remembered in a file."""

    tokens: int | None
    path: Path
    machine: str

    @classmethod
    def load(cls, path: Path, configured: int | None, machine: str) -> TokenLimit:
        """The limit that an earlier run met on the same machine, where it is lower than the configured one."""
        known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        met = known.get("tokens") if known.get("machine") == machine else None
        limits = [limit for limit in (configured, met) if limit is not None]
        return cls(min(limits, default=None), path, machine)

    def lower(self, part: Sequence[Document]) -> None:
        """Halve after the micro-batch `part` failed; raises MachineError where it is a single document."""
        tokens = sum(len(document.ids) for document in part)
        if len(part) == 1:
            message = f"a single sample of {tokens} tokens does not fit into memory"
            hint = "lower distill.max_length, or use student.quantization=nf4 or a smaller base"
            raise MachineError(message, hint=hint)
        self.tokens = tokens // 2
        write_atomic(self.path, json.dumps({"tokens": self.tokens, "machine": self.machine}) + "\n")


def machine_name(device: Any) -> str:
    """What a limit belongs to: the card's name and memory, or `cpu`."""
    import torch

    if device.type != "cuda":
        return "cpu"
    found = torch.cuda.get_device_properties(device)
    return f"{found.name}, {found.total_memory} bytes"
