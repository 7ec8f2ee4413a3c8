"""Several processes that a launcher (`accelerate launch`, `torchrun`) started for one training."""

from __future__ import annotations

from potstill.config import StudentConfig
from potstill.errors import MachineError
from potstill.student.base import pick_device


def is_first_process(config: StudentConfig) -> bool:
    """Whether this is the process that judges, writes and speaks; joins the launcher's group, where there is one."""
    from accelerate import PartialState

    return bool(PartialState(cpu=pick_device(config) == "cpu").is_main_process)


def refuse_sharding() -> None:
    """Raise MachineError where the launcher would shard the base: steps add up whole gradients, on every process."""
    from accelerate.utils import parse_flag_from_env

    for name in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            message = f"distill cannot train under {name}: each process holds the whole base"
            raise MachineError(message, hint="launch with torchrun or `accelerate launch --multi_gpu`, or use nf4")


def leave_group() -> None:
    """Leave the launcher's group: what follows training is the first process's alone."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
