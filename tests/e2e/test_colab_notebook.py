"""The Colab notebook's cells, run in their order on a CPU: a tiny base in place of the T4's student, no Drive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import COMMAND
from tests.e2e.test_distill_cli import write_dataset
from tests.tiny import save_tiny

from potstill.workspace import Workspace

ROOT = Path(__file__).parents[2]
CELLS = [
    "".join(cell["source"])
    for cell in json.loads((ROOT / "scripts" / "colab_distill.ipynb").read_text("utf-8"))["cells"]
    if cell["cell_type"] == "code"
]
ON_A_CPU = {
    "POTSTILL__STUDENT__BASE": "base",
    "POTSTILL__STUDENT__DEVICE": "cpu",
    "POTSTILL__STUDENT__QUANTIZATION": "none",
    "POTSTILL__DISTILL__EPOCHS": "1",
    "POTSTILL__DISTILL__MAX_NEW_TOKENS": "4",
}

pytestmark = pytest.mark.slow


def test_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and every line of Python works one after the other, and ends in a report and an export.

    The last cell shows the report by IPython, which is no dependency: its file is looked at instead.
    """
    save_tiny(tmp_path / "base")
    write_dataset(Workspace(tmp_path))
    (tmp_path / "colab-t4.yaml").write_text((ROOT / "configs" / "colab-t4.yaml").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **ON_A_CPU, "PATH": path, "PYTHONWARNINGS": "ignore"}
    *cells, shown = CELLS
    python: list[str] = []
    for cell in cells:
        python += [line for line in cell.splitlines() if not line.startswith("!")]
        for command in (line[1:] for line in cell.splitlines() if line.startswith("!")):
            done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, "-c", "\n".join(python)], env=environment, check=True)
    assert (report := "students/student/report.html") in shown
    assert "the verdict" in (tmp_path / report).read_text("utf-8")
    assert (tmp_path / "students" / "student" / "export" / "student" / "student.gguf").is_file()
