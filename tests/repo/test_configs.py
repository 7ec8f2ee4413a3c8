"""Every config that is shipped loads, plans, and says what it is for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import Run

from potstill.config import resolve
from potstill.workspace import shipped

CONFIGS = sorted(shipped("configs").glob("*.yaml"))


def test_the_configs_of_the_design_are_there() -> None:
    """One config for each kind of machine that the design names."""
    assert [path.stem for path in CONFIGS] == [
        "colab-t4", "demo", "free-tier", "gpu-8gb", "gpu-large", "production",
    ]  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_sets_what_it_names(path: Path) -> None:
    """The file resolves without an error, changes something, and begins by saying what it is for."""
    found = resolve(path, environ={})
    assert any(origin.startswith("file") for origin in found.origins.values())
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_can_be_planned_without_a_key(path: Path, potstill: Run) -> None:
    """`generate --dry-run` prints the resolved config with the origin of every value, and needs no key."""
    prompts = ("--prompts", "faq-train.en.txt")
    result = potstill("generate", "-c", path, *prompts, "--dry-run", "--json", "--set", "budget.max_usd=null")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["dry_run"] is True
    origins = {entry["origin"].split()[0] for entry in document["config"].values()}
    assert {"default", "file", "--prompts", "--set"} <= origins
