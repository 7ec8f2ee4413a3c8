"""What a training run took, in seconds and in joules, over restarts too: by the machine's own counters where it has them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isinf
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from potstill.distill.processes import Card
from potstill.files import write_atomic
from potstill.pricing.compute import load_compute
from potstill.student.manifest import Energy

EVERY_S = 20.0
"""Seconds between readings: a processor's counter starts anew after some minutes, and a kill loses no more than these."""
POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Counter:
    """A meter that counts joules upwards, and from 0 again after `range_j` where it has one."""

    what: str
    read: Callable[[], float]
    range_j: float = float("inf")


@dataclass
class Effort:
    """Counts seconds and joules while it is open; another process goes on from the file that a killed one left.

    A file of another plan is not gone on from. Only this process counts, for all of a launcher's. `joules` is None once
    something was not counted: no counter, or one that failed, as `failed` says; training goes on.
    """

    path: Path
    plan_id: str
    counters: Sequence[Counter]
    seconds: float = 0.0
    joules: float | None = 0.0
    failed: str = ""
    _at: float = 0.0
    _last: list[float] = field(default_factory=list)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> Self:
        self._go_on()
        if not self.counters:
            self.joules = None
        self._at, self._last = time.monotonic(), self._read()
        self._thread = threading.Thread(target=self._watch, name="effort", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._count()

    def energy(self, power: tuple[float, str] | None) -> Energy | None:
        """Measured, else at most `power` (watts, whose) for all of the time; None where neither is known."""
        if self.joules is not None:
            kwh = self.joules / JOULES_PER_KWH
            return Energy(kwh=kwh, measured=True, how=", ".join(counter.what for counter in self.counters))
        if power is None:
            return None
        watts, whose = power
        how = f"an estimate: {whose} at its full {watts:g} W for all of the time"
        return Energy(kwh=watts * self.seconds / JOULES_PER_KWH, measured=False, how=how)

    def _watch(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._count()

    def _count(self) -> None:
        now, values = time.monotonic(), self._read()
        self.seconds += now - self._at
        if self.joules is not None:
            for counter, value, last in zip(self.counters, values, self._last, strict=True):
                self.joules += value - last if value >= last else value - last + counter.range_j
            if isinf(self.joules):  # a driver that was loaded anew counts from 0
                self.failed, self.joules = "a counter that has no end went back", None
        self._at, self._last = now, values
        document = {"plan_id": self.plan_id, "seconds": self.seconds, "joules": self.joules}
        write_atomic(self.path, json.dumps(document) + "\n")

    def _read(self) -> list[float]:
        """What the counters show; nothing after one has failed."""
        if self.joules is None:
            return []
        try:
            return [counter.read() for counter in self.counters]
        except (OSError, ValueError) as error:
            self.failed, self.joules = str(error), None
            return []

    def _go_on(self) -> None:
        try:
            found = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return
        if found.get("plan_id") == self.plan_id:
            self.seconds, self.joules = found["seconds"], found["joules"]


def machine_counters(cards: Sequence[Card]) -> list[Counter]:
    """Counters of all that trains: the cards, and the processors as far as they can be read; none if a card has none."""
    found = _card_counters(cards)
    return [*found, *processor_counters()] if len(found) == len(cards) else []


def board_power(cards: Sequence[Card]) -> tuple[float, str] | None:
    """Watts of these cards by their data sheets, and their names; None where one is not known, or there is none."""
    rows = [load_compute().card_in(card.name) for card in cards]
    watts = [float(row.watts) for row in rows if row is not None]
    return (sum(watts), ", ".join(card.name for card in cards)) if cards and len(watts) == len(cards) else None


def processor_counters(folder: Path = POWERCAP) -> list[Counter]:
    """Linux's RAPL counters, one for each processor; none where they are not there or not for us to read."""
    found = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a processor, counted in the whole
            continue
        try:
            (zone / "energy_uj").read_text()
            reach = int((zone / "max_energy_range_uj").read_text()) / 1e6
        except (OSError, ValueError):
            continue
        name = zone.name.partition(":")[2]
        found.append(Counter(f"processor {name} by RAPL", partial(_joules, zone), reach))
    return found


def _card_counters(cards: Sequence[Card]) -> list[Counter]:
    """NVML's energy counters (since Volta); none without cards, nvidia-ml-py or a driver that counts."""
    if not cards:
        return []
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        found = [pynvml.nvmlDeviceGetHandleByUUID(card.uuid) for card in cards]
        for handle in found:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return []
    return [
        Counter(f"{card.name} by NVML", partial(_card_joules, handle))
        for card, handle in zip(cards, found, strict=True)
    ]


def _joules(zone: Path) -> float:
    return int((zone / "energy_uj").read_text()) / 1e6


def _card_joules(handle: Any) -> float:
    import pynvml

    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except pynvml.NVMLError as error:
        message = f"NVML: {error}"
        raise OSError(message) from error
