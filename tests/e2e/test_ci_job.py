"""The CI job that `potstill init --ci` writes, its own commands run as a runner would."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.conftest import COMMAND, Run

from potstill.teacher.emulator import EmulatorSettings, running


def commands(job: dict[str, Any]) -> list[str]:
    """What a job runs, but for the installation."""
    return [step["run"] for step in job["steps"] if "run" in step and not step["run"].startswith("pip ")]


def test_the_ci_job_plans_checks_and_runs(potstill: Run, tmp_path: Path) -> None:
    """It is added to a project that exists; its commands plan without a key, stop at the budget, and make the dataset."""
    assert potstill("init").returncode == 0
    path = tmp_path / ".github" / "workflows" / "potstill.yml"
    path.unlink()
    assert potstill("init", "--ci").returncode == 0
    assert potstill("init", "--ci").returncode == 2
    workflow = yaml.safe_load(path.read_text())
    environment = {**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}

    def run(command: str, **variables: str) -> int:
        given = {**environment, **workflow["env"], **variables}
        return subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env=given, capture_output=True, check=False
        ).returncode

    plan, work = commands(workflow["jobs"]["plan"]), commands(workflow["jobs"]["generate"])
    assert [run(command) for command in plan] == [0]
    assert [run(command, MAX_USD="0.0001") for command in plan] == [4]
    with running(EmulatorSettings(latency_s=0.0)) as teacher:
        key = {"GEMINI_API_KEY": "any-text", "GOOGLE_GEMINI_BASE_URL": teacher.url}
        assert [run(command, **key) for command in work] == [0, 0]
    assert (tmp_path / "workspace" / "dataset" / "manifest.json").is_file()
