"""Every command that the READMEs show exists, with the options that they give it."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from potstill.cli.app import app

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README.zh-TW.md")
PAGES = [*READMES, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]


def shell_lines(page: str) -> list[str]:
    """The commands in a page's shell blocks, continuation lines joined, prompts and comments taken off."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").split(" #")[0].strip() for line in lines]


def commands(page: str) -> list[list[str]]:
    """The `potstill ...` commands of a page as argument lists, without what a shell adds around them."""
    found = []
    for line in shell_lines(page):
        start = re.search(r"(?:^|[;&|]\s*|\s)potstill\s", f" {line} ")
        if start and not line.startswith(("pip ", "git ")):
            words = shlex.split(line[max(0, start.start() - 1) :].strip(" ;&|"))
            words = words[words.index("potstill") + 1 :]
            stops = [index for index, word in enumerate(words) if word in {"|", ">", ">>", "&", "&&", ";", "2>", "<"}]
            found.append(words[: stops[0]] if stops else words)
    return found


def test_readmes_show_every_command() -> None:
    """Each README has an example of each of the commands, so the checks below are about something."""
    for page in READMES:
        shown = {words[0] for words in commands(page) if words}
        assert {"generate", "distill", "serve-local", "infer", "cost", "doctor", "emulator", "init"} <= shown


def test_readmes_show_the_same_commands() -> None:
    """The Traditional Chinese README names the same commands as the English one, in the same order."""
    first, second = ([words[:1] for words in commands(page)] for page in READMES)
    assert first == second


@cache
def help_of(name: tuple[str, ...]) -> str:
    """A command's help."""
    result = CliRunner().invoke(app, [*name, "--help"])
    assert result.exit_code == 0, f"no command {name}"
    return result.stdout


@pytest.mark.parametrize("page", PAGES)
def test_options_shown_exist(page: str) -> None:
    """Every option that a page gives to a command stands in that command's help."""
    for words in commands(page):
        name = tuple(words[:2]) if words[:1] == ["cost"] else tuple(words[:1])
        if not name or name[0].startswith("-"):
            continue
        options = [word.split("=")[0] for word in words[1:] if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)]
        missing = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(name))]
        assert not missing, f"{page}: {' '.join(words)}: {missing}"


def test_make_targets_shown_exist() -> None:
    """Every `make` target that a page names is in the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = {line.split()[1] for page in PAGES for line in shell_lines(page) if line.startswith("make ")}
    assert {"demo", "test"} <= shown
    assert shown <= targets


def test_links_lead_somewhere() -> None:
    """Every relative link and picture in a page names a file that is there."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
