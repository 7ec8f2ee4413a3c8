"""Will a student fit this card? Memory of LoRA training from the model's shape alone, no weights needed. Pure.

The coefficients were counted with saved-tensor hooks on Llama-shaped models, and compared with published peaks of litgpt
and torchtune (the estimate lies above every one of them, by 1 to 14 %) and with traces of potstill's own steps
(benchmarks/results/fit.md).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
CONTEXT_BYTES = int(0.6 * GIB)
"""What the CUDA context takes before the first tensor."""
NF4_BYTES_PER_PARAMETER = 0.516
"""4-bit weights with double-quantised scales (QLoRA, arXiv 2305.14314)."""
LOGITS_AT_ONCE = 2**25
"""Logits that potstill's own loss holds at once on a card: 128 MiB of them in float32."""
MIN_LOSS_ROWS = 64
"""Fewer rows of logits than this at once would spend their time on fetching the head's weights."""


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder-only model's `config.json` that decide its memory."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    unused_parameters: int = 0
    """Weights that are loaded but see no text, such as a vision tower's."""
    further_normed: int = 0
    """Numbers a token and layer that pass through norms beyond the usual two, as of queries and keys."""

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the head."""
        attention = 2 * self.hidden * self.heads * self.head_dim + 2 * self.hidden * self.kv_heads * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding and, where it is not tied to it, of the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights that text passes through, norms included."""
        return self.linear_parameters + self.embedding_parameters + 2 * self.hidden * self.layers

    @property
    def loss_rows(self) -> int:
        """Rows of logits that potstill's own loss holds at once."""
        return max(MIN_LOSS_ROWS, LOGITS_AT_ONCE // self.vocabulary)

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters on all linear layers."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = 2 * (self.hidden + query) + 2 * (self.hidden + key) + 3 * (self.hidden + self.mlp)
        return self.layers * rank * widths


@dataclass(frozen=True)
class Recipe:
    """How it is trained: tokens of a micro-batch, rank, quantisation, and some switches."""

    tokens: int = 1024
    rank: int = 16
    nf4: bool = False
    checkpointing: bool = True
    loss_rows: int | None = None
    """Rows of logits held at once; None: all of them, as plain transformers does."""
    autocast: bool = True
    """Adapters in fp32 under autocast, which keeps 16-bit copies of them; False: adapters in 16 bits."""
    dropout: bool = False
    compiled: bool = False


@dataclass(frozen=True)
class Memory:
    """Peak bytes by part. `peak` is what torch allocates at most, `need` what the card must have free."""

    weights: int
    adapters: int
    activations: int
    logits: int
    peak: int
    need: int


def training_memory(shape: Shape, recipe: Recipe) -> Memory:
    """Bytes that LoRA training takes: 16-bit or 4-bit weights, adapters with gradients and Adam's moments.

    Activations of a layer and logits are never held at once, so the larger of the two counts.
    """
    weights = weight_bytes(shape, nf4=recipe.nf4)
    adapters = shape.lora_parameters(recipe.rank) * (4 + 4 + 8 + (2 if recipe.autocast else 0))
    stored, layer = _activations(shape, recipe)
    if recipe.nf4:
        layer += 2 * shape.hidden * shape.mlp  # one matrix at a time is expanded
    rows, bytes_each = (recipe.tokens, 14) if recipe.loss_rows is None else (recipe.loss_rows, 7)
    logits = bytes_each * shape.vocabulary * rows
    peak = weights + adapters + stored + max(layer, logits)
    return Memory(weights, adapters, stored + layer, logits, peak, int(1.05 * peak) + CONTEXT_BYTES)


def weight_bytes(shape: Shape, *, nf4: bool) -> int:
    """Bytes of the frozen weights; embeddings stay in 16 bits."""
    linear_bytes = NF4_BYTES_PER_PARAMETER if nf4 else 2
    return int(linear_bytes * (shape.linear_parameters + shape.unused_parameters) + 2 * shape.embedding_parameters)


def _activations(shape: Shape, recipe: Recipe) -> tuple[int, int]:
    """Bytes kept for the backward pass, and bytes of the one layer at work."""
    heads = shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    factor = (1.6 if recipe.dropout else 1.0) * (0.68 if recipe.compiled else 1.0)
    per_token = int(factor * (14 * shape.hidden + 4 * shape.further_normed + 2 * heads + 8 * shape.mlp))
    temporary = 4 * recipe.tokens * (shape.mlp + shape.hidden)
    if recipe.checkpointing:
        return recipe.tokens * shape.layers * 2 * shape.hidden, recipe.tokens * per_token + temporary
    return recipe.tokens * shape.layers * per_token, temporary


KNOWN = (
    Shape("Qwen/Qwen2.5-0.5B-Instruct", 896, 24, 14, 2, 64, 4864, 151_936, tied=True),
    Shape("google/gemma-3-1b-it", 1152, 26, 4, 1, 256, 6912, 262_144, tied=True, further_normed=3584),
    Shape("meta-llama/Llama-3.2-1B-Instruct", 2048, 16, 32, 8, 64, 8192, 128_256, tied=True),
    Shape("Qwen/Qwen2.5-1.5B-Instruct", 1536, 28, 12, 2, 128, 8960, 151_936, tied=True),
    Shape("Qwen/Qwen2.5-3B-Instruct", 2048, 36, 16, 2, 128, 11_008, 151_936, tied=True),
    Shape("meta-llama/Llama-3.2-3B-Instruct", 3072, 28, 24, 8, 128, 8192, 128_256, tied=True),
    Shape("google/gemma-3-4b-it", 2560, 34, 8, 4, 256, 10_240, 262_208, True, 411_070_464, 8192),
    Shape("Qwen/Qwen2.5-7B-Instruct", 3584, 28, 28, 4, 128, 18_944, 152_064, tied=False),
    Shape("meta-llama/Llama-3.1-8B-Instruct", 4096, 32, 32, 8, 128, 14_336, 128_256, tied=False),
    Shape("Qwen/Qwen2.5-14B-Instruct", 5120, 48, 40, 8, 128, 13_824, 152_064, tied=False),
)
"""Students worth considering, by the published `config.json` of each."""
