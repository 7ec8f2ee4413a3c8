"""The memory formula, against the table that it was published with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.student.fit import GIB, KNOWN, Recipe, Shape, training_memory

# GiB needed at 2,048 tokens with 256 rows of logits at once: QLoRA, 16-bit LoRA; then QLoRA with all logits at once.
TABLE = {
    "Qwen/Qwen2.5-0.5B-Instruct": (1.7, 2.2, 5.5),
    "google/gemma-3-1b-it": (2.5, 3.5, 9.2),
    "meta-llama/Llama-3.2-1B-Instruct": (2.3, 3.6, 5.5),
    "Qwen/Qwen2.5-1.5B-Instruct": (2.6, 4.5, 6.4),
    "Qwen/Qwen2.5-3B-Instruct": (3.8, 7.8, 7.6),
    "meta-llama/Llama-3.2-3B-Instruct": (3.9, 8.0, 7.1),
    "google/gemma-3-4b-it": (5.0, 9.7, 11.7),
    "Qwen/Qwen2.5-7B-Instruct": (7.9, 17.2, 11.3),
    "meta-llama/Llama-3.1-8B-Instruct": (8.1, 18.1, 11.0),
    "Qwen/Qwen2.5-14B-Instruct": (13.1, 32.2, 16.6),
}


@pytest.mark.parametrize("shape", KNOWN, ids=lambda shape: shape.name)
def test_matches_the_table(shape: Shape) -> None:
    """Each known student needs what the calibrated table says, to a tenth of a GiB."""
    recipes = (
        Recipe(tokens=2048, nf4=True, loss_rows=256),
        Recipe(tokens=2048, loss_rows=256),
        Recipe(tokens=2048, nf4=True),
    )
    needs = tuple(round(training_memory(shape, recipe).need / GIB, 1) for recipe in recipes)
    assert needs == TABLE[shape.name]


def test_table_covers_all_known_students() -> None:
    """No student is recommended that the table does not cover."""
    assert {shape.name for shape in KNOWN} == set(TABLE)


@given(st.sampled_from(KNOWN), st.integers(1, 8192), st.booleans(), st.booleans())
def test_more_tokens_never_need_less(shape: Shape, tokens: int, nf4: bool, checkpointing: bool) -> None:
    """Memory grows with the tokens of a micro-batch."""
    recipe = Recipe(tokens=tokens, nf4=nf4, checkpointing=checkpointing)
    more = Recipe(tokens=tokens + 64, nf4=nf4, checkpointing=checkpointing)
    assert training_memory(shape, recipe).need < training_memory(shape, more).need
