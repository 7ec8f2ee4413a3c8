"""Several processes that a launcher (`accelerate launch`, `torchrun`) started for one training."""

from __future__ import annotations

from dataclasses import dataclass

from potstill.config import StudentConfig
from potstill.student.base import pick_device


@dataclass(frozen=True)
class Card:
    """A GPU that trains, by its maker's name and NVML's id."""

    name: str
    uuid: str


def training_cards(config: StudentConfig) -> list[Card]:
    """The cards of this machine that the processes of one training use; none on a CPU."""
    import torch
    from accelerate import PartialState

    if pick_device(config) == "cpu":
        return []
    processes = PartialState().num_processes
    used = range(min(processes, torch.cuda.device_count())) if processes > 1 else [torch.cuda.current_device()]
    found = [torch.cuda.get_device_properties(index) for index in used]
    return [Card(card.name, f"GPU-{card.uuid}") for card in found]


def is_first_process(config: StudentConfig) -> bool:
    """Whether this is the process that judges, writes and speaks; joins the launcher's group, where there is one."""
    from accelerate import PartialState

    return bool(PartialState(cpu=pick_device(config) == "cpu").is_main_process)


def wait_for_all() -> None:
    """Go on once every process of the launcher's group has come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def leave_group() -> None:
    """Leave the launcher's group: what follows training is the first process's alone."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
