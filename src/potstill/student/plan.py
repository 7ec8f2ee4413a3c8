"""Will it fit my card, and how long will it take? The largest workable way to train, with its reason. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

from potstill.student.fit import GIB, Memory, Recipe, Shape, training_memory

TOKENS = (16384, 8192, 4096, 2048, 1024, 512, 256)
"""Micro-batches that are tried, the largest first."""
USEFUL_TOKENS = 2048
"""From this micro-batch on, a card is busy; a heavier saving of memory is only taken below it."""
USABLE_GIB = {"T4": 14.7, "L4": 22.0, "A10": 22.0, "L40S": 44.4, "RTX 4090": 23.5, "A100": 79.1, "H100": 79.1}
"""What a card of this name has for a program when nothing else uses it; the larger model where there are two."""
UTILISATION = (0.40, 0.22)
"""Share of the card's peak at best and at worst: NeMo's published 41 % and plain Trainer's 22 %, both on an H100."""


@dataclass(frozen=True)
class Choice:
    """One way to train that fits, its memory by part, and why it was chosen."""

    recipe: Recipe
    memory: Memory
    reason: str


@dataclass(frozen=True)
class Effort:
    """Training time in seconds, energy and dollars, each at best and at worst."""

    tokens: int
    seconds: tuple[float, float]
    kwh: tuple[float, float]
    usd: tuple[Decimal, Decimal]


@dataclass(frozen=True)
class Power:
    """A card's 16-bit peak in TFLOP/s, its watts, and dollars an hour."""

    tflops: float
    watts: float
    usd_per_hour: Decimal


def choose(shape: Shape, free_bytes: int, rank: int, step_tokens: int = TOKENS[0]) -> Choice | None:
    """The largest workable choice; None where not even 4-bit weights and the smallest micro-batch fit.

    No micro-batch is larger than a step of `step_tokens` needs: room that nothing uses is better left free.
    16-bit weights come before 4-bit ones, which cost quality and a quarter of the speed; keeping the activations comes
    before computing them twice. A step down is taken where the one before it leaves room for too few tokens.
    """
    sizes = [size for size in TOKENS if size < 2 * step_tokens] or [TOKENS[-1]]
    fitting = list(_largest(shape, free_bytes, rank, sizes))
    for choice in fitting:
        if choice.recipe.tokens >= min(USEFUL_TOKENS, sizes[0]):
            return choice
    return max(fitting, key=lambda choice: choice.recipe.tokens, default=None)


def _largest(shape: Shape, free_bytes: int, rank: int, sizes: Sequence[int]) -> Iterator[Choice]:
    """For each way to save memory, the lightest first, the largest micro-batch that fits."""
    for nf4, checkpointing in ((False, False), (False, True), (True, False), (True, True)):
        for tokens in sizes:
            recipe = Recipe(tokens, rank, nf4, checkpointing, shape.loss_rows)
            memory = training_memory(shape, recipe)
            if memory.need <= free_bytes:
                weights = "4-bit weights (QLoRA)" if nf4 else "16-bit weights"
                kept = "activations computed twice" if checkpointing else "activations kept"
                room = f"{memory.need / GIB:.1f} of {free_bytes / GIB:.1f} GiB"
                yield Choice(recipe, memory, f"{weights}, {kept}, {tokens} tokens a micro-batch: {room}")
                break


def effort(shape: Shape, recipe: Recipe, tokens: int, power: Power) -> Effort:
    """Time, energy and price of training on this many tokens.

    Work: 4 operations a parameter and token for LoRA, 6 where the forward pass runs twice (arXiv 2001.08361 has 6 where
    all weights learn); attention over long texts, loading and evaluation are left out.
    """
    work = (6 if recipe.checkpointing else 4) * shape.parameters * tokens
    best, worst = (work / (power.tflops * 1e12 * share) for share in UTILISATION)
    hours = best / 3600, worst / 3600
    return Effort(
        tokens=tokens,
        seconds=(best, worst),
        kwh=(power.watts / 1000 * hours[0], power.watts / 1000 * hours[1]),
        usd=(power.usd_per_hour * Decimal(str(hours[0])), power.usd_per_hour * Decimal(str(hours[1]))),
    )
