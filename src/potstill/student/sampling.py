"""The next token of every row at once: steered by bias, penalties and schema, then the likeliest or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.student.answers import Choice, Rival
from potstill.student.decoding import Row

COLDEST = 1e-30
"""Temperatures below this are taken as this: in float32 they would be 0, and the likeliest token's score 0 / 0."""


def choose(logits: Any, rows: Sequence[Row]) -> list[Choice]:
    """Choose from logits (rows, vocabulary). A drawn token depends on its row's seed alone, not on its neighbours."""
    import torch

    plain = logits.float()
    steered = plain
    if any(row.steers for row in rows):
        steered = plain.clone()
        for index, row in enumerate(rows):
            row.steer(steered[index])
    tokens = steered.argmax(-1)
    drawn = [index for index, row in enumerate(rows) if row.query.temperature > 0]
    if drawn:
        tokens[drawn] = _draw(steered[drawn], [rows[index] for index in drawn])
    logprobs = plain.log_softmax(-1)
    tops: dict[int, tuple[Rival, ...]] = {}
    for index, row in enumerate(rows):
        if row.query.top_logprobs:
            values, ids = torch.topk(logprobs[index], min(row.query.top_logprobs, plain.shape[1]))
            tops[index] = tuple(map(Rival, ids.tolist(), values.tolist()))
    chosen = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
    return [
        Choice(token, logprob, tops.get(index, ()))
        for index, (token, logprob) in enumerate(zip(tokens.tolist(), chosen, strict=True))
    ]


def _draw(scores: Any, rows: Sequence[Row]) -> Any:
    """One token a row from the smallest set that holds `top_p` (arXiv 1904.09751), by inversion of one uniform number.

    The uniform number comes from the row's own generator, so that the draw is the same in every batch.
    """
    import torch

    temperatures = torch.tensor([[max(COLDEST, row.query.temperature)] for row in rows], device=scores.device)
    top_ps = torch.tensor([[row.query.top_p] for row in rows], device=scores.device)
    uniforms = torch.tensor([[row.uniform()] for row in rows], device=scores.device)
    relative = (scores - scores.amax(-1, keepdim=True)) / temperatures  # at most 0, so that no temperature overflows
    probabilities, order = torch.softmax(relative, dim=-1).sort(descending=True, stable=True)
    below = probabilities.cumsum(-1)
    kept = probabilities.masked_fill(below - probabilities > top_ps, 0.0)
    heights = kept.cumsum(-1)
    places = (heights <= uniforms * heights[:, -1:]).sum(-1, keepdim=True)
    last = (kept > 0).sum(-1, keepdim=True) - 1
    return order.gather(1, torch.minimum(places, last))[:, 0]
