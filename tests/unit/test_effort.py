"""Seconds and joules of training: by the machine's counters, over restarts, else an estimate that says so."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.test_verdict import decide, many

from potstill.distill.card import card
from potstill.distill.effort import Counter, Effort, board_power, machine_counters, processor_counters
from potstill.distill.processes import Card
from potstill.student.manifest import Energy, StudentManifest, StudentRole

T4 = Card("Tesla T4", "GPU-0")


def zone(folder: Path, name: str, micro: int | None, reach: int = 1_000_000_000) -> Path:
    """A RAPL zone as Linux shows it, with so many microjoules; None: not for us to read."""
    place = folder / name
    place.mkdir(exist_ok=True)
    (place / "max_energy_range_uj").write_text(str(reach))
    if micro is not None:
        (place / "energy_uj").write_text(f"{micro}\n")
    return place


def test_processors_are_read_and_their_parts_are_not(tmp_path: Path) -> None:
    """Each processor counts once: not its parts, and none that cannot be read."""
    zone(tmp_path, "intel-rapl:0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", 4_000_000)
    zone(tmp_path, "intel-rapl:1", None)
    (counter,) = processor_counters(tmp_path)
    assert (counter.what, counter.read(), counter.range_j) == ("processor 0 by RAPL", 5.0, 1000.0)
    assert processor_counters(tmp_path / "nothing") == []


def test_joules_are_counted_over_a_wrap_and_a_restart(tmp_path: Path) -> None:
    """A counter that starts anew loses nothing, and a second process goes on from the first one's sum."""
    place = zone(tmp_path, "intel-rapl:0", 999_000_000)
    for end, sums in ((3_000_000, 4.0), (5_000_000, 6.0)):
        with Effort(tmp_path / "effort.json", "plan", processor_counters(tmp_path)) as effort:
            (place / "energy_uj").write_text(str(end))
        assert effort.joules == pytest.approx(sums)
    found = effort.energy(None)
    assert effort.joules is not None
    assert found == Energy(kwh=effort.joules / 3.6e6, measured=True, how="processor 0 by RAPL")
    kept = json.loads((tmp_path / "effort.json").read_text())
    assert (kept["seconds"], kept["joules"]) == (effort.seconds, effort.joules)
    (tmp_path / "effort.json").write_text(json.dumps({**kept, "seconds": 1e9}))
    with Effort(tmp_path / "effort.json", "another plan", []) as other:
        pass
    assert other.joules is None
    assert other.seconds < 1e9


def test_a_counter_without_end_that_goes_back_ends_the_measurement(tmp_path: Path) -> None:
    """A card's driver that was loaded anew counts from 0: what was lost is not known, and no infinite sum is written."""
    values = [5.0, 9.0, 1.0]
    with Effort(tmp_path / "effort.json", "plan", [Counter("card", lambda: values.pop(0))]) as effort:
        effort._count()
    assert effort.joules is None
    assert "went back" in effort.failed
    assert json.loads((tmp_path / "effort.json").read_text())["joules"] is None


def test_a_counter_that_fails_ends_the_measurement_and_nothing_else(tmp_path: Path) -> None:
    """What was not counted is not known, also after a restart: no figure but the card's full power, and the reason is kept."""
    place, counters = zone(tmp_path, "intel-rapl:0", 0), processor_counters(tmp_path)
    with Effort(tmp_path / "effort.json", "plan", counters) as effort:
        (place / "energy_uj").unlink()
    assert "energy_uj" in effort.failed
    assert effort.energy(None) is None
    zone(tmp_path, "intel-rapl:0", 5_000_000)
    with Effort(tmp_path / "effort.json", "plan", counters) as again:
        pass
    assert again.seconds > effort.seconds
    assert (again.failed, again.energy(None)) == ("", None)
    estimate = again.energy(board_power([T4]))
    assert estimate is not None
    assert not estimate.measured


def test_without_a_counter_it_is_an_estimate_or_nothing(tmp_path: Path) -> None:
    """A card of known power gives an upper end that says what it is; a processor without a counter gives no figure."""
    with Effort(tmp_path / "effort.json", "plan", []) as effort:
        pass
    assert effort.energy(None) is None
    found = effort.energy(board_power([T4, T4]))
    assert found is not None
    assert not found.measured
    assert "estimate" in found.how
    assert found.kwh == pytest.approx(140 * effort.seconds / 3.6e6)
    assert board_power([]) is None
    assert board_power([T4, Card("a card that nobody made", "")]) is None
    powers = [board_power([Card(name, "")]) for name in ("NVIDIA L40S", "NVIDIA L4")]
    assert [power and power[0] for power in powers] == [350.0, 72.0]


def test_a_card_that_cannot_be_read_makes_no_measurement() -> None:
    """What the processor took alone is not what training on a card took."""
    assert machine_counters([T4]) == []


@pytest.mark.parametrize(
    ("energy", "said"),
    [
        (None, "not known"),
        (Energy(kwh=0.5, measured=True, how="a meter"), "measured 0.5 kWh (a meter)"),
        (Energy(kwh=0.5, measured=False, how="an estimate"), "at most 0.5 kWh (an estimate)"),
    ],
)
def test_the_card_tells_the_whole_lineage(energy: Energy | None, said: str) -> None:
    """Teacher, prompts, data, money, electricity, verdict and the teacher's terms stand on the model card."""
    manifest = StudentManifest(
        name="s", base="b", revision=None, base_sha="b" * 64, template_sha="t" * 64,
        roles=(StudentRole(name="expert", system="Be brief."),), adapters="shared", plan_id="c1:plan",
        dataset_sha={"train": "d" * 64}, config={}, versions={"torch": "2"}, samples=7, supervised_tokens=5,
        train_seconds=3, created_at=datetime(2026, 1, 1, tzinfo=UTC), energy=energy,
    )  # fmt: skip
    text = card(manifest, decide(many(1.0, -0.1, 30)))
    assert said in text
    for part in ("`t`", "$0.10", "d" * 16, "system prompt sha256", "c1:plan", "30 held-out answers", "Gemini's"):
        assert part in text
