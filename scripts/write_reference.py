"""Write docs/reference.md from the program itself: the help of every command, and every config key.

python scripts/write_reference.py            write the page
python scripts/write_reference.py --check    exit with 1 where the page is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import typer
import yaml
from typer.testing import CliRunner

from potstill.cli.app import app
from potstill.config import Config, field_of, flatten

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
WIDTH = {"COLUMNS": "110", "TERMINAL_WIDTH": "110", "NO_COLOR": "1"}


def commands(group: typer.Typer, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command, as the words that are typed after `potstill`."""
    for command in group.registered_commands:
        yield (*before, command.name or "")
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands(inner.typer_instance, (*before, inner.name or ""))


def help_of(words: tuple[str, ...]) -> str:
    """What `potstill WORDS --help` prints."""
    result = CliRunner().invoke(app, [*words, "--help"], env=WIDTH, prog_name="potstill")
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def default_of(value: object) -> str:
    """A default as it would stand in a config file, in code marks."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def page() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Written by `scripts/write_reference.py` from the program itself; a test fails where it is out of date.",
        "",
        "## Config",
        "",
        "`potstill.yaml`, or any file given with `-c`. A flag beats `--set key=value`, which beats the environment",
        "(`POTSTILL__SECTION__KEY`), which beats the file. Secrets never stand in it.",
        "",
        "| key | default | what it is |",
        "|---|---|---|",
    ]
    for key, value in flatten(Config()).items():
        description = (field_of(key).description or "").replace("|", "\\|")
        lines.append(f"| `{key}` | {default_of(value)} | {description} |")
    lines += ["", "## Commands", ""]
    for words in commands(app):
        lines += [f"### potstill {' '.join(words)}", "", "```text", help_of(words), "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    given = parser.parse_args()
    text = page()
    if not given.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE.name} is out of date: run `make reference`")


if __name__ == "__main__":
    main()
