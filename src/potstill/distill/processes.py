"""Several processes that a launcher (`accelerate launch`, `torchrun`) started for one training."""

from __future__ import annotations

from potstill.config import StudentConfig
from potstill.student.base import pick_device


def is_first_process(config: StudentConfig) -> bool:
    """Whether this is the process that judges, writes and speaks; joins the launcher's group, where there is one."""
    from accelerate import PartialState

    return bool(PartialState(cpu=pick_device(config) == "cpu").is_main_process)


def leave_group() -> None:
    """Leave the launcher's group: what follows training is the first process's alone."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
