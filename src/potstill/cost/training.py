"""What distilling costs: floating-point work, hours on a card, and their price. Pure but for reading the base's shape.

Work: LoRA needs 4 operations a parameter and token, 2 forward and 2 backward through the activations; the adapters' own
gradients are lost in that (Kaplan et al. 2020, arXiv 2001.08361, counts 6 where all weights learn). Activation
checkpointing runs the forward pass once more: 6. A card does a share of its peak; which one is an assumption until a
student of this base has been trained here, whose seconds are then used instead. Loading and evaluation are left out.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from potstill.config import Config
from potstill.errors import InputError
from potstill.pricing.compute import Card, Compute
from potstill.student.fit import KNOWN
from potstill.student.manifest import read_manifest
from potstill.student.plan import UTILISATION
from potstill.wording import counted
from potstill.workspace import Workspace

OPERATIONS = 6
"""For each parameter and token, with activation checkpointing."""

WORST_UTILISATION = 0.10
"""The least share of a card's peak that is counted on: an assumption. Expected is what a plain Trainer reaches."""

HEADER_BYTES = 8
MOST_HEADER = 100_000_000


@dataclass(frozen=True)
class Training:
    """Tokens seen, parameters, hours expected and at most, dollars for them, kWh, and what it stands on."""

    tokens: int
    parameters: int
    hours: float
    worst_hours: float
    usd: Decimal
    worst_usd: Decimal
    kwh: float
    machine: str
    basis: str


@dataclass(frozen=True)
class Place:
    """Where it is trained: a card, and what an hour of it costs by rent, or by power where it is one's own."""

    name: str
    card: Card
    usd_per_hour: Decimal


def place_of(machine: str, kwh_usd: Decimal, compute: Compute) -> Place:
    """A rented machine by id, or an own card by name; raises InputError for one that is unknown or has no card data."""
    own = next((card for card in compute.cards if card.name.lower() == machine.lower()), None)
    if own is not None:
        return Place(f"an own {own.name}, power only", own, own.watts / 1000 * kwh_usd)
    row = compute.gpu(machine)
    if row.card is None:
        message = f"the speed of {row.gpu} is not in the data, so its hours cannot be estimated"
        raise InputError(message, hint="choose another --machine")
    return Place(f"{row.id}, rented at ${row.usd_per_hour:f} an hour", compute.card(row.card), row.usd_per_hour)


def training(config: Config, workspace: Workspace, sample_tokens: float, samples: int, place: Place) -> Training | None:
    """Hours and price of distilling `samples` answers of `sample_tokens` tokens each; None for a base of unknown size."""
    kept = round(samples * (1 - config.generate.splits.validation - config.generate.splits.test))
    tokens = round(kept * min(sample_tokens, config.distill.max_length) * config.distill.epochs)
    parameters = base_parameters(config.student.base)
    if parameters is None:
        return None
    work = OPERATIONS * parameters * tokens
    peak = float(place.card.tflops) * 1e12 * 3600
    share = UTILISATION[1]
    hours, worst = work / (peak * share), work / (peak * WORST_UTILISATION)
    basis = f"{share:.0%} of the card's peak as a plain Trainer was seen to reach, {WORST_UTILISATION:.0%} at worst"
    if (measured := _measured(config, workspace, kept)) is not None:
        hours, worst, basis = measured[0], max(worst, measured[0]), measured[1]
    return Training(
        tokens=tokens,
        parameters=parameters,
        hours=hours,
        worst_hours=worst,
        usd=place.usd_per_hour * Decimal(repr(round(hours, 9))),
        worst_usd=place.usd_per_hour * Decimal(repr(round(worst, 9))),
        kwh=float(place.card.watts) / 1000 * hours,
        machine=place.name,
        basis=f"{basis}; loading and evaluation left out",
    )


def base_parameters(base: str) -> int | None:
    """Weights of a base: of a folder's safetensors files, a known model, or as its name says (`...-3B-...`)."""
    folder = Path(base)
    if folder.is_dir():
        return sum(_parameters(path) for path in sorted(folder.glob("*.safetensors"))) or None
    known = next((shape for shape in KNOWN if shape.name == base), None)
    if known is not None:
        return known.parameters
    named = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z])", base.lower())
    return round(float(named[1]) * (1e9 if named[2] == "b" else 1e6)) if named else None


def _parameters(path: Path) -> int:
    """Weights in a safetensors file, by its header: eight bytes of length, then JSON with every tensor's shape."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_BYTES), "little")
        text = file.read(min(length, MOST_HEADER))
    try:
        header = json.loads(text)
        return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path}: not a safetensors file"
        raise InputError(message) from error


def _measured(config: Config, workspace: Workspace, samples: int) -> tuple[float, str] | None:
    """Hours by what training this base took here, sample for sample; None where no such student stands."""
    files = workspace.student(config.distill.name)
    if not files.manifest.is_file():
        return None
    manifest = read_manifest(files)
    epochs = manifest.config.get("distill", {}).get("epochs", config.distill.epochs)
    seen = manifest.samples * float(epochs)
    if manifest.base != config.student.base or not seen:
        return None
    hours = manifest.train_seconds / seen * samples * config.distill.epochs / 3600
    return (
        hours,
        f"as student {manifest.name} took here: {manifest.train_seconds:.0f} s for {counted(manifest.samples, 'sample')}",
    )
