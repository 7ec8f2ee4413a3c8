"""`potstill distill --plan`: will it fit this card, and how long, how much energy and money will it take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.cli.session import Session
from potstill.errors import InputError, UsageError
from potstill.pricing.compute import load_compute
from potstill.pricing.tokens import estimate_tokens
from potstill.student.fit import GIB, Memory, Recipe, training_memory, weight_bytes
from potstill.student.machine import inspect_machine
from potstill.student.plan import USABLE_GIB, Choice, Effort, Power, choose, effort
from potstill.student.shape import read_shape

if TYPE_CHECKING:
    from potstill.config import Config
    from potstill.student.fit import Shape
    from potstill.student.machine import Gpu

KWH_USD = Decimal("0.18")
"""An assumption, as in `cost compare`."""
DEFAULT_TOKENS = 1024
TIGHT = 0.93
NOTE = (
    "tight: what counts is what `nvidia-smi` shows as free; a card sold as 8 GB has about 7.5 GiB, and a desktop takes"
    " up to 1 of them"
)


@dataclass(frozen=True)
class Place:
    """The card that is planned for: its name, free bytes, and power where it is known.

    `held_bytes`: what a local teacher of soft targets takes, no longer among the free ones.
    """

    name: str
    free_bytes: int
    power: Power | None
    held_bytes: int = 0


def show_plan(session: Session, card: str | None, memory_gib: float | None) -> None:
    """Plan for the named card or memory, else for this machine's largest GPU; reads config.json and no weights."""
    config = session.config
    place = _beside_teacher(_place(session.workspace.root, card, memory_gib), config)
    shape = read_shape(config.student)
    rank = config.distill.lora.r
    asked = Recipe(
        tokens=config.distill.tokens_per_batch or DEFAULT_TOKENS,
        rank=rank,
        nf4=config.student.quantization == "nf4",
        checkpointing=config.distill.activation_checkpointing != "off",
        loss_rows=shape.loss_rows,
        dropout=config.distill.lora.dropout > 0,
        compiled=config.distill.compile,
    )
    memory = training_memory(shape, asked)
    best = choose(shape, place.free_bytes, rank, config.distill.batch_size * config.distill.max_length)
    tokens = _tokens(session)
    work = effort(shape, (best.recipe if best else asked), tokens, place.power) if tokens and place.power else None
    document = {
        "base": shape.name,
        "parameters": shape.parameters,
        "card": place.name,
        "free_bytes": place.free_bytes,
        "local_teacher_bytes": place.held_bytes,
        "config": {**asdict(memory), "tokens": asked.tokens, "fits": memory.need <= place.free_bytes},
        "best": _best(best),
        "effort": asdict(work) if work else None,
    }
    session.show(document, "\n".join(_lines(shape, place, asked, memory, best) + _effort_lines(work, place)))


def _place(folder: Path, card: str | None, memory_gib: float | None) -> Place:
    """What is planned for; raises UsageError for an unknown card, or where there is neither a card nor a name."""
    if card is not None:
        known = {name.lower(): name for name in USABLE_GIB}
        if card.lower() not in known:
            message = f"unknown card {card!r}"
            raise UsageError(message, hint=f"known: {', '.join(USABLE_GIB)}; else give --memory-gib")
        name = known[card.lower()]
        return Place(name, int((memory_gib or USABLE_GIB[name]) * GIB), _power(name))
    if memory_gib is not None:
        return Place(f"a card with {memory_gib:g} GiB free", int(memory_gib * GIB), None)
    gpus = inspect_machine(folder).gpus
    if not gpus:
        message = "this machine has no CUDA GPU to plan for"
        raise UsageError(message, hint="name one: --card T4, or --memory-gib 8")
    gpu = max(gpus, key=lambda found: found.free_bytes)
    return Place(gpu.name, gpu.free_bytes, _power_of(gpu))


def _beside_teacher(place: Place, config: Config) -> Place:
    """What is left beside the weights of the local teacher, which stay on the card while the student learns."""
    soft, student = config.distill.soft_targets, config.student
    if soft.teacher is None:
        return place
    shape = read_shape(student.model_copy(update={"base": soft.teacher, "revision": soft.revision}))
    held = weight_bytes(shape, nf4=student.quantization == "nf4")
    return replace(place, free_bytes=max(0, place.free_bytes - held), held_bytes=held)


def _power_of(gpu: Gpu) -> Power | None:
    name = next((name for name in USABLE_GIB if name.lower() in gpu.name.lower().replace("-", " ").split(" ")), None)
    return _power(name or ("RTX 4090" if "4090" in gpu.name else "")) if name or "4090" in gpu.name else None


def _power(name: str) -> Power | None:
    """An own card of this name: its power costs, its purchase is left out."""
    try:
        card = load_compute().card(name)
    except InputError:
        return None
    return Power(float(card.tflops), float(card.watts), card.watts / 1000 * KWH_USD)


def _tokens(session: Session) -> int:
    """Tokens of all passes over the training split, as the teacher counted them; 0 where there is no dataset yet."""
    from potstill.distill.data import read_samples

    path = session.workspace.split("train")
    if not path.is_file():
        return 0
    samples, distill = read_samples(path), session.config.distill
    sizes = [sample.usage.input_tokens + sample.usage.output_tokens for sample in samples]
    if distill.rationale.weight is not None:
        reasoned = [sample for sample in samples if sample.rationale]
        sizes += [sample.usage.input_tokens + estimate_tokens(sample.rationale or "") for sample in reasoned]
    return round(sum(min(distill.max_length, size) for size in sizes) * distill.epochs)


def _best(best: Choice | None) -> Mapping[str, Any] | None:
    if best is None:
        return None
    settings = {
        "student.quantization": "nf4" if best.recipe.nf4 else "none",
        "distill.activation_checkpointing": "on" if best.recipe.checkpointing else "auto",
        "distill.tokens_per_batch": best.recipe.tokens,
    }
    return {"settings": settings, "memory": asdict(best.memory), "reason": best.reason}


def _lines(shape: Shape, place: Place, asked: Recipe, memory: Memory, best: Choice | None) -> list[str]:
    fits = "fits" if memory.need <= place.free_bytes else "DOES NOT FIT"
    parts = (
        ("weights", memory.weights),
        ("adapters, gradients, Adam", memory.adapters),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("needed in all, with context", memory.need),
    )
    how = f"{'nf4' if asked.nf4 else '16-bit'}, r {asked.rank}, {asked.tokens} tokens a micro-batch"
    kept = "computed twice" if asked.checkpointing else "kept"
    lines = [
        f"{shape.name}: {shape.parameters / 1e6:,.0f} million parameters; {place.name}: {place.free_bytes / GIB:.1f} GiB",
        *([f"the local teacher takes {place.held_bytes / GIB:.1f} GiB beside that"] if place.held_bytes else []),
        f"as configured ({how}, activations {kept}): {fits}",
        *(f"  {name:28} {size / GIB:7.2f} GiB" for name, size in parts),
    ]
    if best is None:
        return [*lines, "no way of LoRA training fits: choose a smaller student.base, or a larger card"]
    found = _best(best) or {}
    tight = best.memory.need > TIGHT * place.free_bytes
    return [
        *lines,
        f"largest workable choice: {best.reason}",
        *(f"  --set {key}={value}" for key, value in found["settings"].items()),
        *([NOTE] if tight else []),
    ]


def _effort_lines(work: Effort | None, place: Place) -> list[str]:
    if work is None:
        why = "the card's speed is not in the data" if place.power is None else "there is no dataset yet"
        return [f"time, energy and cost: unknown, as {why}"]
    (best, worst), (little, much), (cheap, dear) = work.seconds, work.kwh, work.usd
    return [
        f"training on {work.tokens} tokens: {best / 60:.1f} to {worst / 60:.1f} min, {little:.4f} to {much:.4f} kWh",
        f"  ${cheap:.4f} to ${dear:.4f} of power at ${KWH_USD} a kWh (assumed); loading and evaluation left out",
    ]
