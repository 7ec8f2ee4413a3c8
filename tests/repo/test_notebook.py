"""The Colab notebook: valid, without stored outputs, and its commands are ones that potstill has."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from tests.conftest import Run

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "scripts" / "colab_distill.ipynb").read_text("utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
COMMANDS = [line.strip()[1:] for cell in CELLS for line in cell["source"] if line.startswith("!potstill")]


def test_notebook_is_clean() -> None:
    """It is of the current format, and nobody's outputs are stored in it."""
    assert NOTEBOOK["nbformat"] == 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)
    assert any("--plan" in command for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_known(command: str, potstill: Run) -> None:
    """Each potstill command of the notebook names options that the command's help knows, and a config that is shipped."""
    words = shlex.split(command)[1:]
    shown = potstill(words[0], "--help", env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
    assert all(word in shown for word in words if word.startswith("-"))
    assert all((ROOT / "configs" / word).is_file() for word in words if word.endswith(".yaml"))
