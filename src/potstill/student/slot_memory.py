"""Keys and values of what slots have read: one memory for all rows of a batch, and the beginnings that prompts share."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

GRAIN = 64
"""The memory's rows grow in steps of so many tokens."""
KEPT_PREFIXES = 64
"""Beginnings of prompts that are kept at most; the least recently used goes first."""


class SlotMemory:
    """Keys and values of all slots: for each layer (slots, heads, length, size). Stands in for transformers' Cache."""

    def __init__(self) -> None:
        self._layers: list[list[Any]] = []
        self._slots = 0
        self._length = 0
        self._rows: slice = slice(0, 0)
        self._positions: Any = None
        self._seen = 0

    def aim(self, rows: slice, positions: Any, seen: int) -> None:
        """Say where the next forward writes (`positions`: rows, tokens) and how far it looks."""
        import torch

        self._rows, self._positions, self._seen = rows, positions, seen
        self._index = torch.arange(rows.start, rows.stop, device=positions.device)[:, None]
        self._fit(rows.stop, seen)

    def update(self, keys: Any, values: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Called by each attention layer: write the new keys and values, give all that the rows look at."""
        if layer == len(self._layers):
            self._layers.append([self._room(keys[0]), self._room(values[0])])
        held = self._layers[layer]
        for memory, new in zip(held, (keys, values), strict=True):
            memory[self._index, :, self._positions] = new.transpose(1, 2)
        return held[0][self._rows, :, : self._seen], held[1][self._rows, :, : self._seen]

    def get_seq_length(self, _layer: int = 0) -> int:
        """Asked by some families; positions are always given, so it does not matter."""
        return 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one row over another; a row that holds nothing may have no place here yet."""
        import torch

        if not length:
            return
        with torch.inference_mode():
            for held in self._layers:
                for memory in held:
                    memory[target, :, :length] = memory[source, :, :length]

    def read(self, slot: int, length: int) -> list[list[Any]]:
        """A copy of the beginning of a row."""
        return [[memory[slot, :, :length].clone() for memory in held] for held in self._layers]

    def write(self, slot: int, layers: list[list[Any]]) -> None:
        """Put a copied beginning into a row."""
        length = layers[0][0].shape[1]
        self._fit(slot + 1, length)
        if not self._layers:
            self._layers = [[self._room(part) for part in kept] for kept in layers]
        for held, kept in zip(self._layers, layers, strict=True):
            for memory, part in zip(held, kept, strict=True):
                memory[slot, :, :length] = part

    def _room(self, row: Any) -> Any:
        """Empty memory for rows like this one (heads, length, size)."""
        return row.new_zeros((self._slots, row.shape[0], self._length, row.shape[2]))

    def _fit(self, slots: int, length: int) -> None:
        """Make room for so many rows of such a length, with what they hold."""
        if slots <= self._slots and length <= self._length:
            return
        old = (self._slots, self._length)
        if slots > self._slots:
            self._slots = 1 << (slots - 1).bit_length()
        self._length = max(self._length, -(-length // GRAIN) * GRAIN)
        for held in self._layers:
            for place, memory in enumerate(held):
                # Zeros: what lies behind a row's end is masked, and a masked NaN would still spoil the sum.
                larger = memory.new_zeros((self._slots, memory.shape[1], self._length, memory.shape[3]))
                larger[: old[0], :, : old[1]] = memory
                held[place] = larger


class Prefixes:
    """Keys and values of what all prompts of one role begin with: its system prompt, never what a user wrote."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, list[list[Any]]] = OrderedDict()
        self.hits = 0

    def find(self, key: str) -> list[list[Any]] | None:
        """What is kept for a key."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return self._kept[key]

    def keep(self, key: str, layers: list[list[Any]]) -> None:
        """Keep a beginning."""
        self._kept[key] = layers
        if len(self._kept) > KEPT_PREFIXES:
            self._kept.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        return key in self._kept
