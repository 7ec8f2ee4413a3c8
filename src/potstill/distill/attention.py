"""Attention within each document of a packed row, never across: torch's own varlen kernel on CUDA, SDPA elsewhere.

Registered with transformers under a name of its own; a name that has no mask function makes transformers build no
mask, so nothing of size (tokens, tokens) ever exists. The layout reaches the layers as the keyword `layout`.
"""

from __future__ import annotations

from typing import Any

from potstill.distill.packing import Layout, Span

NAME = "potstill_packed"
FLASH_CAPABILITY = (8, 0)
"""The oldest cards on which torch has a flash kernel (Ampere); a T4 takes the SDPA path."""
FLASH_HEAD_SIZE = 256


def use_packed_attention(model: Any) -> None:
    """Make a transformers model attend within documents; it must then be called with `layout=`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(  # noqa: PLR0913  (the signature is transformers')
    _module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Causal attention per document.

    `query`: (1, heads, tokens, size); `key`, `value`: (1, kv heads, tokens, size); gives (1, tokens, heads, size).
    Raises ValueError for what packing cannot do: a mask, dropout inside attention.
    """
    if attention_mask is not None or dropout:
        message = "packed attention takes no mask and no dropout"
        raise ValueError(message)
    if has_varlen(value):
        return _varlen(query, key, value, layout, scaling, sliding_window), None
    parts = [_by_sdpa(query, key, value, span, scaling, sliding_window) for span in layout.spans]
    import torch

    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def has_varlen(value: Any) -> bool:
    """Whether torch's flash kernel takes these values: CUDA, Ampere or later, 16 bits, heads of 8 times n, at most 256."""
    import torch

    size = value.shape[-1]
    if not value.is_cuda or value.dtype not in (torch.float16, torch.bfloat16) or size > FLASH_HEAD_SIZE or size % 8:
        return False
    return torch.cuda.get_device_capability(value.device) >= FLASH_CAPABILITY


def _varlen(query: Any, key: Any, value: Any, layout: Layout, scaling: float | None, window: int | None) -> Any:
    """Flash attention over the bounds (arXiv 2307.08691), as torch carries it."""
    from torch.nn.attention.varlen import varlen_attn

    queries, keys, values = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    out: Any = varlen_attn(
        queries,
        keys,
        values,
        layout.bounds,
        layout.bounds,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None]


def _by_sdpa(query: Any, key: Any, value: Any, span: Span, scaling: float | None, window: int | None) -> Any:
    """One call for the documents of a span: padded on the right, which a causal query never sees."""
    from torch.nn.functional import scaled_dot_product_attention

    if value.is_cuda:
        # The memory-efficient kernel, all that a T4 has, knows no grouped heads: left to themselves, they would go
        # to the plain computation, where every score exists at once.
        shared = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    out = scaled_dot_product_attention(
        _rectangle(query, span),
        _rectangle(key, span),
        _rectangle(value, span),
        attn_mask=_window_mask(span.width, window, query.device),
        is_causal=window is None or window >= span.width,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    flat = out.transpose(1, 2).reshape(span.documents * span.width, out.shape[1], out.shape[3])
    return (flat if span.back is None else flat.index_select(0, span.back))[None]


def _rectangle(tensor: Any, span: Span) -> Any:
    """(1, heads, tokens, size) -> (documents, heads, width, size) of one span."""
    flat = tensor[0, :, span.start : span.start + span.tokens]
    if span.index is not None:
        flat = flat.index_select(1, span.index)
    return flat.unflatten(1, (span.documents, span.width)).transpose(0, 1)


def _window_mask(width: int, window: int | None, device: Any) -> Any:
    """Who sees whom where only the last `window` tokens are seen; None where that is everybody."""
    import torch

    if window is None or window >= width:
        return None
    places = torch.arange(width, device=device)
    distance = places[:, None] - places[None, :]
    return (distance >= 0) & (distance < window)
