"""Two configs, or two revisions of one: what is compared is what stood there, prompts included."""

from __future__ import annotations

import subprocess
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from potstill.config import resolve
from potstill.cost.diff import Priced, difference
from potstill.cost.estimate import Assumptions
from potstill.cost.revisions import load_version
from potstill.cost.whole import Options, price_all
from potstill.errors import ConfigError, InputError
from potstill.prompts import load_prompts
from potstill.workspace import Workspace

DAY = date(2026, 11, 24)


def git(*arguments: str) -> None:
    """Run git in the current folder."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit has ten questions for one role; the folder has thirty for two."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    config, questions = Path("potstill.yaml"), Path("questions.txt")
    config.write_text("generate: {prompts: [questions.txt], roles: [hardware-expert]}\n")
    questions.write_text("".join(f"Question {n}?\n" for n in range(10)))
    git("add", "-A")
    git("commit", "-qm", "first")
    config.write_text("generate: {prompts: [questions.txt], roles: [hardware-expert, cost-analyst]}\n")
    questions.write_text("".join(f"Question {n}?\n" for n in range(30)))
    return tmp_path


def priced(spec: str, folder: Path) -> Priced:
    """A version with its estimate."""
    version = load_version(spec, (), folder)
    whole = price_all(version.config, Workspace(folder / "none"), DAY, Options(Assumptions()))
    return Priced(version.name, version.config, whole.estimate, whole.stages)


def test_a_revision_is_priced_with_its_own_prompts(repository: Path, tmp_path: Path) -> None:
    """Ten answers then, sixty now: the prompt file of the revision is used, not the one in the folder."""
    before = priced("HEAD:potstill.yaml", tmp_path / "old")
    after = priced("potstill.yaml", tmp_path / "new")
    assert (before.estimate.cells, after.estimate.cells) == (10, 60)
    found = difference(before, after)
    generate = found.deltas[0]
    assert (generate.name, generate.change_usd) == ("generate", found.change_usd)
    assert found.change_usd == after.stages[0].expected_usd - before.stages[0].expected_usd > 0
    assert ("answers", "10", "60") in found.figures
    assert repository == Path.cwd()


def test_the_same_version_twice_is_no_difference(repository: Path, tmp_path: Path) -> None:
    """Nothing changed: no dollars, no figures, no keys."""
    found = difference(priced("HEAD:potstill.yaml", repository / "a"), priced("HEAD:potstill.yaml", tmp_path / "b"))
    assert (found.change_usd, found.figures, found.keys) == (0, (), ())
    assert all(delta.change_usd == 0 for delta in found.deltas)


@pytest.mark.usefixtures("repository")
def test_keys_that_differ_are_named_and_set_holds_for_both(tmp_path: Path) -> None:
    """A dearer model shows as a key and as dollars; `--set` reaches a revision's config as well."""
    Path("dear.yaml").write_text(
        "teacher: {model: gemini-3.5-flash}\ngenerate: {prompts: [questions.txt], roles: [hardware-expert]}\n"
    )
    found = difference(priced("HEAD:potstill.yaml", tmp_path / "a"), priced("dear.yaml", tmp_path / "b"))
    assert ("teacher.model", "gemini-3.5-flash-lite", "gemini-3.5-flash") in found.keys
    version = load_version("HEAD:potstill.yaml", ("generate.samples_per_prompt=3",), tmp_path / "c")
    assert version.config.generate.samples_per_prompt == 3
    assert len(load_prompts(version.config.generate.prompts)) == 10


@pytest.mark.usefixtures("repository")
def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """An unknown revision, a file that it has not, a prompt file that only the folder has, an option for git."""
    Path("new.txt").write_text("New?\n")
    Path("potstill.yaml").write_text("generate: {prompts: [new.txt]}\n")
    git("add", "potstill.yaml")
    git("commit", "-qm", "names a file that is not committed")
    for spec, needle in (
        ("nowhere:potstill.yaml", "nowhere"),
        ("HEAD:other.yaml", "other.yaml"),
        ("HEAD:potstill.yaml", "new.txt"),
        ("--output=x:potstill.yaml", "--output=x"),
    ):
        with pytest.raises(InputError) as caught:
            load_version(spec, (), tmp_path / "x")
        assert needle in caught.value.message
    with pytest.raises((InputError, ConfigError)):
        load_version("missing.yaml", (), tmp_path / "x")
    assert not Path("x").is_file()


def test_the_environment_takes_no_part(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An override of this shell would hide the difference between two files."""
    monkeypatch.setenv("POTSTILL__TEACHER__MODEL", "gemini-4-argon")
    version = load_version("potstill.yaml", (), tmp_path / "x")
    assert version.config.teacher.model == "gemini-3.5-flash-lite"
    assert resolve(repository / "potstill.yaml").config.teacher.model == "gemini-4-argon"
    assert isinstance(priced("potstill.yaml", tmp_path / "y").stages[0].expected_usd, Decimal)
