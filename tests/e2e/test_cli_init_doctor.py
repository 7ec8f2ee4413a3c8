"""`potstill init` and `potstill doctor` by the installed command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.conftest import Run


def test_init_makes_a_project_whose_config_loads(potstill: Run, tmp_path: Path) -> None:
    """A new project's config is valid, names its own roles and prompts, and sets every key to its default."""
    assert potstill("init", "shop").returncode == 0
    config = yaml.safe_load((tmp_path / "shop" / "potstill.yaml").read_text())
    assert config["generate"]["prompts"] == ["prompts/questions.txt"]
    assert (tmp_path / "shop" / config["generate"]["roles"][0]).is_file()
    schema = json.loads((tmp_path / "shop" / "potstill.schema.json").read_text())
    assert set(schema["properties"]) == set(config)
    plan = potstill("doctor", "--json", "-c", "shop/potstill.yaml")
    assert plan.returncode == 0, plan.stderr


def test_init_writes_what_set_gives_and_leaves_the_limits_to_the_tier(potstill: Run, tmp_path: Path) -> None:
    """Language and budget stand in the config, the questions are in that language; a tier named later fills in limits."""
    made = potstill(
        "init", "--set", "language=zh-TW", "--set", "budget.max_usd=2.5", "--set", "generate.roles=[ai-expert]"
    )
    assert made.returncode == 0, made.stderr
    assert "顯示卡" in (tmp_path / "prompts" / "questions.txt").read_text("utf-8")
    plan = potstill("generate", "--dry-run", "--json", "--set", "teacher.tier=free")
    config = {key: item["value"] for key, item in json.loads(plan.stdout)["config"].items()}
    assert (config["language"], config["budget.max_usd"]) == ("zh-TW", "2.5")
    assert config["generate.roles"] == ["ai-expert"]
    assert config["teacher.rpd"] is not None
    assert config["teacher.rpm"] != 150
    untold = json.loads(potstill("generate", "--dry-run", "--json").stdout)["config"]
    assert untold["teacher.rpm"]["value"] == 150


def test_init_never_writes_over_a_file(potstill: Run, tmp_path: Path) -> None:
    """Where one of its files stands already, init stops with exit code 2 and changes nothing."""
    (tmp_path / "potstill.yaml").write_text("workspace: mine\n")
    result = potstill("init")
    assert result.returncode == 2
    assert "potstill.yaml" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["potstill.yaml"]
    assert (tmp_path / "potstill.yaml").read_text() == "workspace: mine\n"


def test_init_dry_run_writes_nothing(potstill: Run, tmp_path: Path) -> None:
    """A dry run lists the files and leaves the folder empty."""
    result = potstill("init", "--dry-run", "--json")
    assert result.returncode == 0
    assert "potstill.yaml" in json.loads(result.stdout)["files"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_the_variable_and_never_the_key(potstill: Run) -> None:
    """Doctor says where the key came from; the key itself appears nowhere."""
    result = potstill("doctor", "--json", "-v", env={"GEMINI_API_KEY": "sk-very-secret"})
    document = json.loads(result.stdout)
    assert result.returncode == 0
    assert any("GEMINI_API_KEY" in finding["found"] for finding in document["findings"])
    assert "sk-very-secret" not in result.stdout + result.stderr
    assert len(document["students"]) >= 10


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (("doctor", "--set", "teacher.rmp=3"), "did you mean 'teacher.rpm'?"),
        (("doctor", "--set", "teacher.rpm=-3"), "teacher.rpm"),
        (("doctor", "-c", "nowhere.yaml"), "nowhere.yaml"),
        (("doctor", "--no-such-flag"), "--no-such-flag"),
        (("doctor", "-q", "-v"), "contradict"),
        (("no-such-command",), "no-such-command"),
    ],
)
def test_usage_errors_end_in_2(potstill: Run, arguments: tuple[str, ...], needle: str) -> None:
    """A wrong key, value, file, flag or command is exit code 2, with the culprit named on standard error."""
    result = potstill(*arguments)
    assert result.returncode == 2
    assert needle in result.stderr
    assert "Traceback" not in result.stderr


def test_errors_are_one_json_document_too(potstill: Run) -> None:
    """With --json an error is one JSON document on standard output, with its exit code."""
    result = potstill("doctor", "--json", "--set", "teacher.rmp=3")
    document = json.loads(result.stdout)
    assert (result.returncode, document["exit_code"]) == (2, 2)
    assert "teacher.rmp" in document["error"]
