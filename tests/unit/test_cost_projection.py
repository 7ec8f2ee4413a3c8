"""The month ahead: the recent pace carried on, budgets and thresholds, one project or several."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.cost.projection import project, read_budgets, standing, standings
from potstill.errors import InputError
from potstill.ledger import Sum
from potstill.records import Usage

TODAY = date(2026, 11, 20)


def attempt(day: date, usd: str, status: str = "done") -> Sum:
    """An attempt on a day; an open one holds its price."""
    spent, held = (Decimal(0), Decimal(usd)) if status == "open" else (Decimal(usd), Decimal(0))
    return Sum(day, "generate", None, "gemini-3.8-flash", "standard", status, 1, Usage(), spent, held)


def days(usd: list[str], last: date = TODAY - timedelta(days=1)) -> list[Sum]:
    """One attempt a day, ending on `last`."""
    return [attempt(last - timedelta(days=len(usd) - 1 - index), value) for index, value in enumerate(usd)]


def test_a_steady_dollar_a_day_is_carried_on() -> None:
    """Fourteen days at $1: ten more are projected, today's spending counts as spent, and there is no doubt."""
    found = project([*days(["1"] * 14), attempt(TODAY, "0.25")], TODAY, 14)
    assert (found.spent_usd, found.pace_usd, found.days_left) == (Decimal("14.25"), Decimal(1), 10)
    assert found.projected_usd == Decimal("24.25")
    assert found.low_usd == found.high_usd == Decimal("24.25")


def test_quiet_days_count_and_few_days_give_no_interval() -> None:
    """Three dollars on the first of three days make a pace of one; an interval needs ten days."""
    found = project(days(["3", "0", "0"]), TODAY, 14)
    assert (found.pace_usd, found.window_days, found.low_usd) == (Decimal(1), 3, None)


def test_an_uneven_pace_has_an_interval_around_it() -> None:
    """Days between nothing and two dollars leave a doubt, on both sides of the projection."""
    found = project(days(["0", "2", "1", "0", "2", "1", "0.5", "1.5", "0", "2", "1", "1"]), TODAY, 14)
    assert found.low_usd is not None
    assert found.high_usd is not None
    assert found.spent_usd <= found.low_usd < found.projected_usd < found.high_usd


def test_the_first_day_and_an_empty_ledger() -> None:
    """On its first day a project's pace is what it spent today; without attempts there is nothing to project."""
    assert project([attempt(TODAY, "2")], TODAY, 14).projected_usd == Decimal(22)
    assert project([], TODAY, 14).projected_usd == 0


def test_open_attempts_are_shown_apart() -> None:
    """What is possibly paid is told beside the rest, and not carried on."""
    found = project([*days(["1"] * 3), attempt(TODAY, "5", "open")], TODAY, 14)
    assert (found.open_usd, found.spent_usd) == (Decimal(5), Decimal(3))


def test_last_month_sets_the_pace_but_is_not_spent_again() -> None:
    """On the second of a month most of the window lies in the month before."""
    found = project(days(["1"] * 14, date(2026, 12, 1)), date(2026, 12, 2), 14)
    assert (found.spent_usd, found.projected_usd) == (Decimal(1), Decimal(30))


@given(st.lists(st.decimals(0, 100, places=4), max_size=40), st.integers(1, 31))
def test_never_below_what_is_spent(values: list[Decimal], window: int) -> None:
    """The projection is never negative and never below what this month has cost already."""
    found = project(days([str(value) for value in values]), TODAY, window)
    assert 0 <= found.spent_usd <= found.projected_usd


def test_thresholds() -> None:
    """The highest threshold passed is named; above the whole budget the project is over."""
    found = project(days(["1"] * 14), TODAY, 14)  # 24 projected
    shares = (Decimal("0.5"), Decimal("0.8"), Decimal(1))
    assert standing("p", found, Decimal(100), shares).passed is None
    assert standing("p", found, Decimal(28), shares).passed == Decimal("0.8")
    assert standing("p", found, Decimal(20), shares).over
    assert not standing("p", found, None, shares).over


def test_a_budget_file_names_its_workspaces_from_its_own_folder(tmp_path: Path) -> None:
    """Projects without a ledger have spent nothing; the sum stands last, against the common budget."""
    path = tmp_path / "budgets.yaml"
    path.write_text("total_monthly_usd: 50\nprojects:\n - {name: faq, workspace: a, monthly_usd: 20}\n")
    found = standings(read_budgets(path), tmp_path, TODAY, 14)
    assert [(item.name, item.budget_usd) for item in found] == [("faq", Decimal(20)), ("all projects", Decimal(50))]
    assert [item.has_ledger for item in found] == [False, True]


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("projects: []", "projects"),
        ("projects:\n - {name: a, workspace: w, monthly_usd: -1}", "monthly_usd"),
        ("projects:\n - {name: a, workspace: w, monthly_usd: 1, alert: 2}", "alert"),
        ("projects: [", ":1"),
    ],
)
def test_a_bad_budget_file_names_its_place(tmp_path: Path, text: str, needle: str) -> None:
    """An empty list, a negative budget, a misspelt key, broken YAML: file and field are named."""
    path = tmp_path / "budgets.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_budgets(path)
    assert caught.value.message.startswith(f"{path}:")
    assert needle in caught.value.message
