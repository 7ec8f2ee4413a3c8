"""The memory formula, against the table that it was published with."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import StudentConfig
from potstill.errors import InputError
from potstill.student.fit import GIB, KNOWN, Recipe, Shape, training_memory
from potstill.student.plan import TOKENS, Power, choose, effort
from potstill.student.shape import read_shape, shape_of

# GiB needed at 2,048 tokens: QLoRA, 16-bit LoRA; then QLoRA with all logits at once.
TABLE = {
    "Qwen/Qwen2.5-0.5B-Instruct": (1.5, 2.0, 5.5),
    "google/gemma-3-1b-it": (2.2, 3.1, 9.2),
    "meta-llama/Llama-3.2-1B-Instruct": (2.3, 3.6, 5.5),
    "Qwen/Qwen2.5-1.5B-Instruct": (2.5, 4.4, 6.5),
    "Qwen/Qwen2.5-3B-Instruct": (3.8, 7.8, 7.7),
    "meta-llama/Llama-3.2-3B-Instruct": (3.9, 8.0, 7.2),
    "google/gemma-3-4b-it": (4.9, 9.5, 11.8),
    "Qwen/Qwen2.5-7B-Instruct": (7.9, 17.2, 11.4),
    "meta-llama/Llama-3.1-8B-Instruct": (8.1, 18.1, 11.0),
    "Qwen/Qwen2.5-14B-Instruct": (13.2, 32.2, 16.8),
}


@pytest.mark.parametrize("shape", KNOWN, ids=lambda shape: shape.name)
def test_matches_the_table(shape: Shape) -> None:
    """Each known student's text part needs what the table says, to a tenth of a GiB: no plan changes unnoticed."""
    recipes = (
        Recipe(tokens=2048, nf4=True, loss_rows=shape.loss_rows),
        Recipe(tokens=2048, loss_rows=shape.loss_rows),
        Recipe(tokens=2048, nf4=True),
    )
    text = replace(shape, unused_parameters=0)
    needs = tuple(round(training_memory(text, recipe).need / GIB, 1) for recipe in recipes)
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


# Published peaks (torch's allocated memory) of LoRA training. litgpt: A10G, 512 tokens, r 32, activations kept, all
# logits at once, embedding and head apart, in GB. torchtune: 2 x 2,048 tokens, r 8, loss in chunks of 512, in GiB.
PUBLISHED = [
    ("litgpt 1B", "Llama-3.2-1B", Recipe(512, 32, checkpointing=False, autocast=False), 4.49e9),
    ("litgpt 3B", "Llama-3.2-3B", Recipe(512, 32, checkpointing=False, autocast=False), 9.67e9),
    ("litgpt 8B", "Llama-3.1-8B", Recipe(512, 32, checkpointing=False, autocast=False), 19.73e9),
    ("torchtune LoRA", "Llama-3.1-8B", Recipe(4096, 8, loss_rows=512, autocast=False, compiled=True), 16.2 * GIB),
    ("torchtune QLoRA", "Llama-3.1-8B", Recipe(4096, 8, True, True, 512, autocast=False, compiled=True), 7.4 * GIB),
    ("torchtune kept", "Llama-3.1-8B", Recipe(4096, 8, False, False, 512, autocast=False, compiled=True), 30.3 * GIB),
]


@pytest.mark.parametrize(("run", "base", "recipe", "published"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_reproduces_published_peaks(run: str, base: str, recipe: Recipe, published: float) -> None:
    """Each published peak is met within 15 %, and never from below: a plan that says yes is kept."""
    shape = next(shape for shape in KNOWN if base in shape.name)
    if run.startswith("litgpt"):
        shape = replace(shape, tied=False)
    assert 1.0 <= training_memory(shape, recipe).peak / published <= 1.15


def test_shape_is_read_from_config_json(tmp_path: Path) -> None:
    """A folder with a config.json and no weights is enough; what Llama-3.1-8B publishes gives its known shape."""
    published = {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    found = read_shape(StudentConfig(base=str(tmp_path)))
    known = next(shape for shape in KNOWN if "Llama-3.1-8B" in shape.name)
    assert replace(found, name=known.name) == known
    assert abs(known.parameters / 8.03e9 - 1) < 0.01


def test_what_a_family_takes_for_granted_is_known(tmp_path: Path) -> None:
    """Gemma 3's 4B publishes a text part without heads or vocabulary, and a vision tower that is loaded as well."""
    published = {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 896,
            "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    found = read_shape(StudentConfig(base=str(tmp_path)))
    assert replace(found, name="google/gemma-3-4b-it") == next(shape for shape in KNOWN if "gemma-3-4b" in shape.name)
    assert abs((found.parameters + found.unused_parameters) / 4.3e9 - 1) < 0.01


def test_text_part_of_a_larger_config_is_read() -> None:
    """A family that this machine's transformers does not know is read as its config.json stands."""
    inner = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 16, "intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True,
    }  # fmt: skip
    found = shape_of("x", {"model_type": "nobody's", "text_config": inner}, "config.json")
    assert found == Shape("x", 64, 2, 8, 4, 16, 128, 1000, tied=True)


@pytest.mark.parametrize(("family", "normed"), [("llama", 0), ("qwen3", 192), ("gemma2", 128), ("gemma3_text", 320)])
def test_what_a_family_norms_besides_is_counted(family: str, normed: int) -> None:
    """Norms of queries and keys (12 heads of 16), and of what attention and MLP give (64 each), keep more for the way back."""
    values = {
        "model_type": family, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 128, "vocab_size": 1000,
    }  # fmt: skip
    assert shape_of("x", values, "config.json").further_normed == normed


def test_no_micro_batch_is_larger_than_a_step() -> None:
    """A step of 4,096 tokens needs no room for 16,384: what is spared stays free."""
    shape = next(shape for shape in KNOWN if "gemma-3-1b" in shape.name)
    assert [choose(shape, 80 * GIB, 16, step).recipe.tokens for step in (4096, 3000, 100)] == [4096, 4096, 256]


def test_config_without_numbers_is_named(tmp_path: Path) -> None:
    """A config.json that lacks what the formula needs is refused by name, and so is broken JSON by line."""
    path = tmp_path / "config.json"
    path.write_text('{"hidden_size": 64}')
    with pytest.raises(InputError, match=r"config\.json: no usable num_hidden_layers"):
        read_shape(StudentConfig(base=str(tmp_path)))
    path.write_text("{\n nonsense")
    with pytest.raises(InputError, match=r"config\.json:2: not valid JSON"):
        read_shape(StudentConfig(base=str(tmp_path)))


@given(st.sampled_from(KNOWN), st.floats(0.5, 90), st.integers(1, 64))
def test_a_choice_always_fits(shape: Shape, gib: float, rank: int) -> None:
    """What is chosen needs no more than is free; and where nothing is chosen, the leanest way does not fit."""
    free = int(gib * GIB)
    found = choose(shape, free, rank)
    leanest = training_memory(shape, Recipe(TOKENS[-1], rank, nf4=True, loss_rows=shape.loss_rows))
    assert found is None if leanest.need > free else found is not None
    assert found is None or found.memory.need <= free


@pytest.mark.parametrize(
    ("base", "gib", "nf4", "checkpointing"),
    [("Qwen2.5-0.5B", 8, False, False), ("Llama-3.2-3B", 6, True, True), ("Llama-3.1-8B", 80, False, False)],
)
def test_the_lightest_saving_is_chosen(base: str, gib: float, nf4: bool, checkpointing: bool) -> None:
    """A small base keeps 16 bits and its activations on 8 GB, a 3B one gives up both on 6 GB, and 80 GB give up nothing."""
    found = choose(next(shape for shape in KNOWN if base in shape.name), int(gib * GIB), 16)
    assert found is not None
    assert (found.recipe.nf4, found.recipe.checkpointing) == (nf4, checkpointing)


def test_effort_by_hand() -> None:
    """A billion parameters, a million tokens: 4e15 operations, which a 100 TFLOP/s card does in 100 s at 40 %."""
    shape = Shape("x", 1000, 100, 10, 10, 100, 2000, 0, tied=True)
    power = Power(tflops=100, watts=360, usd_per_hour=Decimal(36))
    found = effort(shape, Recipe(checkpointing=False), 1_000_000, power)
    assert found.seconds[0] == pytest.approx(4 * shape.parameters * 1e6 / 40e12)
    assert found.kwh[0] == pytest.approx(found.seconds[0] * 0.36 / 3600)
    assert float(found.usd[0]) == pytest.approx(found.seconds[0] / 100)
    assert found.seconds[1] > found.seconds[0]
