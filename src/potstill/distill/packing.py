"""Several chats in one row without padding: micro-batches by a budget of tokens, and where each document begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from potstill.student.onednn import rounded

UNLEARNED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class Document:
    """One encoded chat. `labels` are its own ids, or -100 where nothing is learned; `weight` scales its loss.

    `sampled`: the student wrote the answer itself, so that its tokens are not right by definition.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    weight: float = 1.0
    sampled: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Document:
        """A document of a row with `input_ids`, `labels` and maybe `weight`."""
        return cls(tuple(row["input_ids"]), tuple(row["labels"]), float(row.get("weight", 1.0)))

    @property
    def learned(self) -> int:
        """Tokens that are learned; the first token of a document cannot be, because nothing predicts it."""
        return sum(label != UNLEARNED for label in self.labels[1:])

    @property
    def mass(self) -> float:
        """What this document adds to the divisor of the loss."""
        return self.weight * self.learned


IDLE = Document((0, 0), (UNLEARNED, 0), weight=0.0)
"""What a process runs that has nothing to learn while others do."""


@dataclass(frozen=True)
class Span:
    """Neighbouring documents of similar length, attended to in one call.

    `index` (documents * width) finds the span's tokens in a rectangle padded on the right, `back` (tokens) finds each
    token in that rectangle again; both are None where all documents are equally long.
    """

    start: int
    tokens: int
    documents: int
    width: int
    index: Any = None
    back: Any = None


@dataclass(frozen=True)
class Layout:
    """Where the documents of a packed row lie: `bounds` (documents + 1, int32) and `longest` for varlen kernels."""

    bounds: Any
    longest: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Packed:
    """One micro-batch as one row.

    `input_ids`, `position_ids`: (1, tokens). `rows`: (learned,), the positions whose next token is learned;
    `targets`, `weights`: (learned,). `hard`: (learned,), the weights again, but 0 where the student wrote the token.
    """

    input_ids: Any
    position_ids: Any
    layout: Layout
    rows: Any
    targets: Any
    weights: Any
    hard: Any


def split(documents: Sequence[Document], limit: int | None) -> list[list[Document]]:
    """Micro-batches of at most `limit` tokens, first-fit decreasing; a document that is longer stands alone."""
    bins: list[list[Document]] = []
    room: list[int] = []
    for document in sorted(documents, key=lambda each: -len(each.ids)):
        size = len(document.ids)
        place = next((at for at, left in enumerate(room) if limit is None or size <= left), None)
        if place is None:
            bins.append([document])
            room.append((limit or 0) - size)
        else:
            bins[place].append(document)
            room[place] -= size
    return bins


def filler(documents: Sequence[Document]) -> list[Document]:
    """A document of nothing to learn that fills a micro-batch up to a length that packed weights like, if one is needed."""
    tokens = sum(len(document.ids) for document in documents)
    missing = rounded(tokens) - tokens
    return [Document((0,) * missing, (UNLEARNED,) * missing)] if missing else []


def pack(documents: Sequence[Document], device: Any) -> Packed:
    """Lay documents end to end, the longest first; everything the layers need is computed once, here."""
    import torch

    ordered = sorted(documents, key=lambda each: -len(each.ids))
    lengths = [len(document.ids) for document in ordered]
    starts = [0, *accumulate(lengths)]
    rows, targets, weights, hard = [], [], [], []
    for start, document in zip(starts, ordered, strict=False):
        at = [place for place, label in enumerate(document.labels) if label != UNLEARNED and place > 0]
        rows += [start + place - 1 for place in at]
        targets += [document.labels[place] for place in at]
        weights += [document.weight] * len(at)
        hard += [0.0 if document.sampled else document.weight] * len(at)
    return Packed(
        input_ids=torch.tensor([[token for document in ordered for token in document.ids]]).to(device),
        position_ids=torch.tensor([[place for length in lengths for place in range(length)]]).to(device),
        layout=lay_out(lengths, device),
        rows=torch.tensor(rows, dtype=torch.long).to(device),
        targets=torch.tensor(targets, dtype=torch.long).to(device),
        weights=torch.tensor(weights, dtype=torch.float32).to(device),
        hard=torch.tensor(hard, dtype=torch.float32).to(device),
    )


def lay_out(lengths: Sequence[int], device: Any) -> Layout:
    """The layout of documents with these lengths, in falling order."""
    import torch

    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
    spans, start = [], 0
    for group in groups(lengths):
        spans.append(_span(start, group, device))
        start += sum(group)
    return Layout(bounds, max(lengths), tuple(spans))


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Cut falling lengths where padding up to the group's first would cost more than a further call.

    A call costs about as much as attention over a square of `SQUARE` by `SQUARE` tokens.
    """
    found: list[list[int]] = []
    wasted = 0
    for length in lengths:
        wasted += found[-1][0] ** 2 - length**2 if found else 0
        if not found or wasted > SQUARE**2:
            found.append([length])
            wasted = 0
        else:
            found[-1].append(length)
    return found


SQUARE = 192


def _span(start: int, lengths: Sequence[int], device: Any) -> Span:
    import torch

    width, tokens = lengths[0], sum(lengths)
    if lengths[-1] == width:
        return Span(start, tokens, len(lengths), width)
    begins = [0, *accumulate(lengths)]
    index = [
        begin + (place if place < length else 0)  # padding repeats the first token; nothing ever looks at it
        for begin, length in zip(begins, lengths, strict=False)
        for place in range(width)
    ]
    back = [number * width + place for number, length in enumerate(lengths) for place in range(length)]
    return Span(
        start, tokens, len(lengths), width, torch.tensor(index, device=device), torch.tensor(back, device=device)
    )
