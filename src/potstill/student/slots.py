"""Continuous decoding in slots: queries join at the next step, leave when they are done, and share each forward.

Every query has a row of one key-value memory, filled from its left end, so that rows need no common length. A step
is at most one forward over the beginnings of new prompts (a bounded number of tokens, so that a long prompt does not
hold up the others) and one over the last tokens of all running rows. Running rows lie side by side in the first
slots; a row that ends is replaced by the last one. After Orca (Yu et al., OSDI 2022); in place of vLLM's pages (arXiv
2309.06180) each row is one stretch, which plain torch attends to without a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.student.answers import Piece
from potstill.student.decoding import Row
from potstill.student.lineup import Lineup
from potstill.student.lora import AdapterBank
from potstill.student.sampling import choose
from potstill.student.slot_memory import Prefixes, SlotMemory

PREFILL_TOKENS = 512
"""Prompt tokens, padding included, that one step reads at most."""
MIN_PREFIX = 4
FAMILIES = frozenset({
    "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3", "gemma3_text", "glm4", "granite",
    "hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "olmo2", "olmo3", "olmoe", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
"""Families whose attention takes any mask and any positions; each is compared with its own `generate` in the tests."""
ONE_MASK = frozenset({"mistral", "phi3"})
"""Those of them that have one mask for all layers, with or without a window."""
EVERY_LAYER = ""
"""In place of a kind of layer where there is one mask."""


def fits_slots(model: Any) -> bool:
    """Whether a model can run in slots: a known family, each layer of which attends to all before it or to a window."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return config.model_type in FAMILIES and kinds <= {"full_attention", "sliding_attention"}


def _windows(config: Any) -> dict[str, int | None]:
    """By kind of layer, how many tokens back it looks (None: to the beginning)."""
    window = getattr(config, "sliding_window", None)
    if config.model_type in ONE_MASK:
        return {EVERY_LAYER: window}
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return {EVERY_LAYER: None}
    return {"full_attention": None, "sliding_attention": window}


class SlotEngine(Lineup[Row]):
    """Decodes rows over one base and its adapters; `prefixes` may be shared by the engines of one student."""

    def __init__(self, model: Any, bank: AdapterBank, prefixes: Prefixes, slots: int) -> None:
        super().__init__(slots)
        self._model = model
        self._bank = bank
        self._prefixes = prefixes
        self._memory = SlotMemory()
        self._windows = _windows(model.config.get_text_config())

    @property
    def adapters(self) -> set[int]:
        """Numbers of the adapters that rows use or will use."""
        return {row.adapter for row in (*self._rows, *self._waiting) if row.adapter is not None}

    def cancel(self, number: int) -> None:
        """Drop a row."""
        for slot, row in enumerate(self._rows):
            if row.number == number:
                self._leave(slot)
                return
        self._drop(number)

    def step(self) -> list[Piece]:
        """Read a part of the new prompts, and give every running row one token."""
        import torch

        pieces: list[Piece] = []
        with torch.inference_mode():
            self._admit()
            started = next((slot for slot, row in enumerate(self._rows) if row.filled < len(row.prompt)), None)
            decoding = len(self._rows) if started is None else started
            if started is not None:
                pieces += self._read(started)
            if decoding:
                pieces += self._decode(decoding)
        for slot in reversed(range(len(self._rows))):
            if self._rows[slot].finish_reason is not None:
                self._leave(slot)
        return pieces

    def _admit(self) -> None:
        """Give waiting rows the free slots, after those that run; a known beginning is copied, not read."""
        # Short prompts first, so that prompts of like length are read together with little padding.
        for row in sorted(self._next(), key=Row.unread):
            kept = self._prefixes.find(row.key) if row.shared else None
            if kept is not None:
                self._memory.write(len(self._rows), kept)
                row.filled = row.shared
            self._rows.append(row)

    def _read(self, first: int) -> list[Piece]:
        """Read the next part of the unread prompts from slot `first` on."""
        import torch

        rows = self._take(first)
        parts = [row.prompt[row.filled : row.filled + PREFILL_TOKENS] for row in rows]
        width = max(map(len, parts))
        # What pads a part is written behind it, where nothing looks until the real token overwrites it.
        ids = torch.tensor([[*part, *([0] * (width - len(part)))] for part in parts])
        starts = torch.tensor([[row.filled] for row in rows])
        done = [row.filled + len(part) == len(row.prompt) for row, part in zip(rows, parts, strict=True)]
        ends = sorted({len(part) - 1 for part, last in zip(parts, done, strict=True) if last})
        logits = self._forward(first, rows, ids, starts + torch.arange(width)[None], ends or [0])
        for slot, (row, part) in enumerate(zip(rows, parts, strict=True), start=first):
            row.filled += len(part)
            self._remember(slot, row)
        ready = [index for index, last in enumerate(done) if last]
        if not ready:
            return []
        chosen = logits[ready, [ends.index(len(parts[index]) - 1) for index in ready]]
        pieces = self._advance([rows[index] for index in ready], chosen)
        self._line_up(first)
        return pieces

    def _take(self, first: int) -> list[Row]:
        """The unread rows whose next parts fit into one forward: at least one, side by side."""
        taken: list[Row] = []
        width = 0
        for row in self._rows[first:]:
            width = max(width, min(PREFILL_TOKENS, len(row.prompt) - row.filled))
            if taken and width * (len(taken) + 1) > PREFILL_TOKENS:
                break
            taken.append(row)
        return taken

    def _decode(self, count: int) -> list[Piece]:
        """One more token for the first `count` rows."""
        import torch

        rows = self._rows[:count]
        ids = torch.tensor([[row.ids[-1]] for row in rows])
        positions = torch.tensor([[row.filled] for row in rows])
        logits = self._forward(0, rows, ids, positions, [0])[:, 0]
        for row in rows:
            row.filled += 1
        return self._advance(rows, logits)

    def _forward(self, first: int, rows: Sequence[Row], ids: Any, positions: Any, ends: list[int]) -> Any:
        """Logits (rows, ends, vocabulary) of the rows in the slots from `first` on."""
        import torch

        device = self._model.device
        seen = max(row.filled for row in rows) + ids.shape[1]
        ids, positions = ids.to(device), positions.to(device)
        self._bank.select([row.adapter for row in rows])
        self._memory.aim(slice(first, first + len(rows)), positions, seen)
        out = self._model(
            input_ids=ids,
            attention_mask=self._masks(positions, seen),
            position_ids=positions,
            cache=self._memory,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=device),
        )
        return out.logits

    def _masks(self, positions: Any, seen: int) -> Any:
        """What each token does not look at: one mask, or one by kind of layer."""
        masks = {kind: self._mask(positions, seen, window) for kind, window in self._windows.items()}
        return masks.get(EVERY_LAYER, masks)

    def _mask(self, positions: Any, seen: int, window: int | None) -> Any:
        """(rows, 1, tokens, seen): the lowest number where a token does not look, else 0."""
        import torch

        places, keys = positions[:, None, :, None], torch.arange(seen, device=positions.device)
        hidden = keys > places
        if window is not None:
            hidden |= keys <= places - window
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=positions.device)
        return mask.masked_fill_(hidden, torch.finfo(mask.dtype).min)

    def _advance(self, rows: Sequence[Row], logits: Any) -> list[Piece]:
        taken = [row.take(choice) for row, choice in zip(rows, choose(logits, rows), strict=True)]
        return [piece for piece in taken if piece is not None]

    def _remember(self, slot: int, row: Row) -> None:
        """Keep the beginning that this row shares with its role's other prompts, once it is read."""
        if row.shared >= MIN_PREFIX and row.filled >= row.shared and row.key not in self._prefixes:
            self._prefixes.keep(row.key, self._memory.read(slot, row.shared))

    def _line_up(self, first: int) -> None:
        """Rows that are read come before those that are not: swap where a short prompt overtook a long one."""
        for slot in range(first, len(self._rows)):
            if self._rows[slot].filled < len(self._rows[slot].prompt):
                continue
            if slot != first:
                self._swap(first, slot)
            first += 1

    def _swap(self, left: int, right: int) -> None:
        rows = self._rows
        kept = self._memory.read(left, max(1, rows[left].filled))
        self._memory.move(right, left, rows[right].filled)
        self._memory.write(right, kept)
        rows[left], rows[right] = rows[right], rows[left]

    def _leave(self, slot: int) -> None:
        """Free a slot and close the gap: with the last running row, and that one's with the last unread one."""
        running = sum(row.filled >= len(row.prompt) for row in self._rows)
        last = len(self._rows) - 1
        for place in dict.fromkeys((running - 1, last) if slot < running else (last,)):
            if place > slot:
                self._memory.move(place, slot, self._rows[place].filled)
                self._rows[slot] = self._rows[place]
                slot = place
        del self._rows[slot]
