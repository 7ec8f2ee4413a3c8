"""Static batches, for bases whose attention does not fit slots: what waits begins together, the next batch after it."""

from __future__ import annotations

from typing import Any

from potstill.student.answers import Piece
from potstill.student.decoding import Row
from potstill.student.lineup import Lineup
from potstill.student.lora import AdapterBank
from potstill.student.sampling import choose


class StaticEngine(Lineup[Row]):
    """Decodes left-padded batches through the base's own cache. Rows that are done or dropped ride along unseen."""

    def __init__(self, model: Any, bank: AdapterBank, pad: int, slots: int) -> None:
        super().__init__(slots)
        self._model = model
        self._bank = bank
        self._pad = pad
        self._gone: set[int] = set()
        self._cache: Any = None
        self._mask: Any = None

    @property
    def running(self) -> int:
        """Rows of the batch that still speak."""
        return sum(self._open(row) for row in self._rows)

    @property
    def adapters(self) -> set[int]:
        """Numbers of the adapters that rows use or will use."""
        return {row.adapter for row in (*self._rows, *self._waiting) if row.adapter is not None}

    def cancel(self, number: int) -> None:
        """Drop a row."""
        self._gone.add(number)
        self._drop(number)

    def step(self) -> list[Piece]:
        """One token for every row of the batch; a new batch where the last is done."""
        import torch

        with torch.inference_mode():
            if self.running:
                ids = torch.tensor([[row.ids[-1] if row.ids else self._pad] for row in self._rows])
                ones = torch.ones((len(self._rows), 1), dtype=self._mask.dtype, device=self._mask.device)
                self._mask = torch.cat([self._mask, ones], dim=-1)
            elif self._waiting:
                ids = self._begin()
            else:
                self._clear()
                return []
            logits = self._forward(ids)
            live = [index for index, row in enumerate(self._rows) if self._open(row)]
            chosen = choose(logits[live], [self._rows[index] for index in live])
        pieces = [self._rows[index].take(choice) for index, choice in zip(live, chosen, strict=True)]
        return [piece for piece in pieces if piece is not None]

    def _clear(self) -> None:
        self._rows, self._cache, self._gone = [], None, set()

    def _begin(self) -> Any:
        import torch

        self._clear()
        self._rows = self._next()
        width = max(len(row.prompt) for row in self._rows)
        padding = [width - len(row.prompt) for row in self._rows]
        self._mask = torch.tensor([[0] * pads + [1] * (width - pads) for pads in padding], device=self._model.device)
        return torch.tensor([[self._pad] * pads + row.prompt for pads, row in zip(padding, self._rows, strict=True)])

    def _forward(self, ids: Any) -> Any:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        self._bank.select([row.adapter for row in self._rows])
        out = self._model(
            input_ids=ids.to(self._model.device),
            attention_mask=self._mask,
            position_ids=positions,
            cache=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.cache
        return out.logits[:, -1]

    def _open(self, row: Row) -> bool:
        return row.finish_reason is None and row.number not in self._gone
