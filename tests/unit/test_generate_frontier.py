"""Where a run that stopped can go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.generate.frontier import Frontier
from potstill.ledger import PlanProgress


@given(st.data(), st.integers(1, 30))
def test_the_next_run_asks_for_everything_that_has_no_answer(data: st.DataObject, cells: int) -> None:
    """Over several runs that end anywhere, a cell is skipped only if it was answered; at the end nothing is left."""
    answered: set[int] = set()
    progress = PlanProgress(cells, 0, ())
    for _ in range(data.draw(st.integers(1, 4))):
        frontier = Frontier(progress)
        todo = [*progress.holes, *range(progress.first_open, cells)]
        assert set(range(cells)) - answered <= set(todo)
        flying: list[int] = []
        for position in todo[: data.draw(st.integers(0, len(todo)))]:
            frontier.given_out(position)
            flying.append(position)
            if len(flying) > data.draw(st.integers(0, 4)):
                landed = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
                if data.draw(st.booleans()):
                    frontier.answered(landed)
                    answered.add(landed)
                else:
                    frontier.failed(landed)
        progress = frontier.progress()
        assert set(range(cells)) - answered <= {*progress.holes, *range(progress.first_open, cells)}
    frontier = Frontier(progress)
    for position in [*progress.holes, *range(progress.first_open, cells)]:
        frontier.given_out(position)
        frontier.answered(position)
    assert frontier.progress() == PlanProgress(cells, cells, ())
