"""Batched decoding with a key-value cache: left-padded prompts, a row at a time may end, greedy or sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.student.answers import Piece, StudentAnswer, StudentQuery

REPLACEMENT = "\ufffd"
"""What an unfinished multi-byte character decodes to; such an ending is held back until it is whole."""


@dataclass
class Row:
    """One query of a batch and what it has said so far."""

    query: StudentQuery
    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    shown: int = 0
    finish_reason: str | None = None


def decode(
    model: Any, tokenizer: Any, rows: Sequence[Row], stops: frozenset[int], adapters: list[str] | None
) -> Iterator[Piece]:
    """Decode a batch, piece by piece. `adapters` names the adapter of each row; None: all use the active one."""
    import torch

    device = next(model.parameters()).device
    width = max(len(row.prompt) for row in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
    generators = [_generator(row.query.seed, device) for row in rows]
    more = {"adapter_names": adapters} if adapters is not None else {}
    cache = None
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        while True:
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
                **more,
            )
            cache = out.cache
            scores = torch.log_softmax(out.logits[:, -1].float(), dim=-1)
            chosen = [_choose(scores[i], row.query, generators[i]) for i, row in enumerate(rows)]
            for index, row in enumerate(rows):
                if row.finish_reason is None:
                    yield from _advance(
                        index, row, chosen[index], float(scores[index, chosen[index]]), tokenizer, stops
                    )
            if all(row.finish_reason is not None for row in rows):
                return
            ids = torch.tensor([[token] for token in chosen], device=device)
            mask = torch.cat([mask, torch.ones((len(rows), 1), dtype=mask.dtype, device=device)], dim=-1)
            positions = positions[:, -1:] + 1


def _advance(
    index: int, row: Row, token: int, logprob: float, tokenizer: Any, stops: frozenset[int]
) -> Iterator[Piece]:
    """Take one token into a row and give what can be shown of it."""
    row.logprobs.append(logprob)
    if token in stops:
        row.finish_reason = "stop"
    else:
        row.ids.append(token)
        row.text = tokenizer.decode(row.ids, skip_special_tokens=True)
        cut = min((at for stop in row.query.stop if (at := row.text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            row.text, row.finish_reason = row.text[:cut], "stop"
        elif len(row.ids) >= row.query.max_new_tokens:
            row.finish_reason = "length"
    safe = len(row.text) if row.finish_reason else _safe_length(row)
    new, row.shown = row.text[row.shown : safe], max(row.shown, safe)
    if row.finish_reason is not None:
        yield Piece(index=index, text=new, answer=_answer(row))
    elif new:
        yield Piece(index=index, text=new)


def _safe_length(row: Row) -> int:
    """How much of an unfinished text can be shown: no half character, no beginning of a stop text."""
    length = len(row.text.rstrip(REPLACEMENT))
    held = [size for stop in row.query.stop for size in range(1, len(stop)) if row.text[:length].endswith(stop[:size])]
    return max(row.shown, length - max(held, default=0))


def _answer(row: Row) -> StudentAnswer:
    return StudentAnswer(
        role=row.query.role,
        text=row.text.strip(),
        finish_reason="length" if row.finish_reason == "length" else "stop",
        prompt_tokens=len(row.prompt),
        completion_tokens=len(row.logprobs),
        mean_logprob=sum(row.logprobs) / len(row.logprobs),
        min_logprob=min(row.logprobs),
    )


def _choose(scores: Any, query: StudentQuery, generator: Any) -> int:
    """The next token: the likeliest, or drawn from the smallest set that holds `top_p` (arXiv 1904.09751)."""
    import torch

    if query.temperature <= 0:
        return int(scores.argmax())
    probabilities, order = torch.softmax(scores / query.temperature, dim=-1).sort(descending=True)
    outside = probabilities.cumsum(-1) - probabilities > query.top_p
    probabilities = probabilities.masked_fill(outside, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _generator(seed: int | None, device: Any) -> Any:
    import torch

    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
