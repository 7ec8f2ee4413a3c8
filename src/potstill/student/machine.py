"""What this machine is: processor, memory, disk, GPU, and which of potstill's parts are installed."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CORE_PACKAGES = ("google-genai", "pydantic", "typer")
LOCAL_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "fastapi",
    "qdrant-client",
    "qdrant-edge-py",
    "sentence-transformers",
)


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; `bf16` only where the hardware has it, not where it is emulated."""

    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    bf16: bool


@dataclass(frozen=True)
class Machine:
    """What was found. `packages` maps a name to its version, or None where it is missing."""

    python: str
    system: str
    cores: int
    memory_bytes: int | None
    disk_free_bytes: int
    gpus: tuple[Gpu, ...]
    packages: dict[str, str | None]


def inspect_machine(folder: Path) -> Machine:
    """Look at this machine; `folder` says which disk. Loads torch only where it is installed."""
    packages = installed((*CORE_PACKAGES, *LOCAL_PACKAGES))
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=_usable_cores(),
        memory_bytes=_memory(),
        disk_free_bytes=shutil.disk_usage(existing).free,
        gpus=_gpus() if packages["torch"] else (),
        packages=packages,
    )


def _usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def installed(names: Iterable[str]) -> dict[str, str | None]:
    """The version of each package, or None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(_gpu(index) for index in range(torch.cuda.device_count()))


def _gpu(index: int) -> Gpu:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(
        name=torch.cuda.get_device_name(index),
        total_bytes=total,
        free_bytes=free,
        capability=torch.cuda.get_device_capability(index),
        bf16=bf16,
    )
