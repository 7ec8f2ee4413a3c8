"""Checkpoints that a rerun goes on from: only this plan's, only whole ones; and the best adapter so far."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARK = "plan.txt"
STATE = "trainer_state.json"
"""The last file of a checkpoint to be written."""


def own_checkpoints(folder: Path, plan_id: str) -> None:
    """Keep the whole checkpoints of this very plan; remove another's, and one that a kill left half written."""
    mark = folder / MARK
    if not mark.is_file() or mark.read_text("utf-8") != plan_id:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(plan_id, "utf-8")
    for checkpoint in folder.glob("checkpoint-*"):
        if not _whole(checkpoint):
            shutil.rmtree(checkpoint)


def drop_checkpoints(folder: Path, plan_id: str) -> bool:
    """Remove the checkpoints of this plan, which is finished; another's stay, that waits to be gone on with. True: none are left."""
    if {mark.read_text("utf-8") for mark in folder.rglob(MARK)} <= {plan_id}:
        shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def last_checkpoint(folder: Path) -> str | None:
    """The checkpoint of the latest step, or None."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return str(found[-1]) if found else None


def stopped_early(checkpoint: str, patience: int | None) -> bool:
    """Whether validation had ended the run of this checkpoint: going on from it would train further than an undisturbed run."""
    if patience is None:
        return False
    state = json.loads((Path(checkpoint) / STATE).read_text("utf-8"))
    return stop_early(validation_losses(state["log_history"]), patience)


def validation_losses(log: Sequence[Mapping[str, float]]) -> list[float]:
    """The validation losses of a trainer's log, in their order. Pure."""
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry]


def stop_early(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` validation losses all failed to improve on the best before them. Pure."""
    return len(losses) > patience and min(losses[-patience:]) >= min(losses[:-patience])


def save_best(folder: Path, model: Any) -> None:
    """Keep the adapter as it is now; the earlier one is replaced in one move."""
    new, best, old = folder / "best.new", folder / "best", folder / "best.old"
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    save_adapter(new, model)
    if best.is_dir():
        os.rename(best, old)  # noqa: PTH104  (a folder cannot be replaced in one call)
    os.rename(new, best)  # noqa: PTH104
    shutil.rmtree(old, ignore_errors=True)


def save_adapter(folder: Path, model: Any) -> None:
    """Save the adapter in PEFT format; equal adapters make equal files, which PEFT's sets of names would not."""
    for settings in model.peft_config.values():
        if not isinstance(settings.target_modules, str):
            settings.target_modules = sorted(settings.target_modules)
    model.save_pretrained(str(folder), safe_serialization=True)


def load_best(folder: Path, model: Any) -> None:
    """Put the best adapter back, where one was kept."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    path = folder / "best" / "adapter_model.safetensors"
    if path.is_file():
        set_peft_model_state_dict(model, load_file(str(path)))


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True
