"""The plan: every cell once, in one order, from any position."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.config import Config, with_values
from potstill.generate.plan import Plan
from potstill.prompts import Prompt, Role

ROLES = (Role(name="a", language="en", system="You are A."), Role(name="b", language="en", system="You are B."))


class Questions(list[Prompt]):
    """Prompts in memory."""

    fingerprint = "in memory"


def plan(prompts: int, samples: int, **generate: object) -> Plan:
    """A plan of so many prompts in two roles."""
    texts = Questions(Prompt(text=f"question {number}", source=f"q.txt:{number}") for number in range(prompts))
    return Plan(with_values(Config(), generate={"samples_per_prompt": samples, **generate}), texts, ROLES)


def test_every_cell_has_a_name_of_its_own() -> None:
    """Prompts x roles x samples, no two with the same key, in the order prompt, role, sample."""
    whole = plan(3, 2)
    cells = list(whole)
    assert len(cells) == len(whole) == 12
    assert len({cell.request.key for cell in cells}) == 12
    assert [(cell.prompt.text, cell.role.name, cell.sample) for cell in cells[:3]] == [
        ("question 0", "a", 0),
        ("question 0", "a", 1),
        ("question 0", "b", 0),
    ]


@given(st.integers(1, 5), st.integers(1, 3), st.data())
def test_resuming_gives_the_holes_and_the_rest(prompts: int, samples: int, data: st.DataObject) -> None:
    """From any position with any holes before it: exactly these cells, each what the whole pass gives there."""
    whole = plan(prompts, samples)
    start = data.draw(st.integers(0, len(whole)))
    holes = sorted(data.draw(st.sets(st.integers(0, start - 1)))) if start else []
    cells = list(whole)
    wanted = [*holes, *range(start, len(whole))]
    assert list(whole.cells(start, holes)) == [(position, cells[position]) for position in wanted]


def test_the_fingerprint_changes_with_what_a_cell_is() -> None:
    """Another temperature is another plan; another filter or split is the same one."""
    base = plan(1, 1)
    assert plan(2, 1).fingerprint == base.fingerprint
    assert plan(1, 1, temperature=0.1).fingerprint != base.fingerprint
    assert plan(1, 1, filters={"min_chars": 9}, splits={"seed": 4}).fingerprint == base.fingerprint
