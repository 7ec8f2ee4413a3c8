"""`potstill init`: a new project folder, never over existing files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from potstill.cli.session import Session, with_session
from potstill.config import Config, Resolved, field_of, flatten, json_schema
from potstill.errors import MachineError, UsageError
from potstill.files import write_atomic
from potstill.workspace import shipped

SCHEMA_NAME = "potstill.schema.json"
PROMPTS_NAME = "prompts/questions.txt"

CI_NAME = ".github/workflows/potstill.yml"
CI_JOB = """\
# On every pull request: what would the run cost? The job fails with exit code 4 when that is above MAX_USD (no key).
# On demand: plan, check, run. The ledger is carried from run to run, so that nothing is paid for twice.
name: potstill
on:
  pull_request:
  workflow_dispatch:
env:
  MAX_USD: "5"
jobs:
  plan:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - run: pip install potstill
      - run: potstill generate --plan --max-cost "$MAX_USD"
  generate:
    if: github.event_name == 'workflow_dispatch'
    needs: plan
    runs-on: ubuntu-latest
    concurrency: potstill # one run at a time on one ledger
    env:
      GEMINI_API_KEY: ${{ secrets.GEMINI_API_KEY }}
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - run: pip install potstill
      - uses: actions/cache/restore@v4
        with: {path: workspace, key: "potstill-${{ github.run_id }}", restore-keys: potstill-}
      - run: potstill generate --plan --max-cost "$MAX_USD"
      - run: potstill generate --max-cost "$MAX_USD" --max-requests 20000 --json-events
      - uses: actions/cache/save@v4
        if: always()
        with: {path: workspace, key: "potstill-${{ github.run_id }}"}
      - uses: actions/upload-artifact@v4
        if: always()
        with: {name: workspace, path: workspace}
"""

QUESTIONS = {
    "en": """\
# One question a line. A line that starts with '#' is a comment.
How much graphics memory does a model of one billion parameters need?
What does quantisation to four bits change?
When is a cloud GPU cheaper than one of my own?
""",
    "zh-TW": """\
# 一行一個問題。以 '#' 開頭的行是註解。
十億參數的模型需要多少顯示卡記憶體？
量化成四位元會有什麼改變？
什麼時候租用雲端 GPU 比自己買便宜？
""",
}
TIERED = {"teacher.tier", "teacher.rpm", "teacher.tpm", "teacher.rpd", "teacher.usd_per_10min"}
"""What a named usage tier fills in, and its name."""


@with_session()
def init(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="Folder of the new project.")] = Path(),
    ci: Annotated[
        bool, typer.Option("--ci", help="Only the CI job (GitHub Actions), for a project that exists.")
    ] = False,
) -> None:
    """Make a project folder. In it: config with every key, roles, prompts, editor schema and a CI job."""
    files = {CI_NAME: CI_JOB} if ci else project_files(session.resolved)
    taken = [name for name in files if (folder / name).exists()]
    if taken:
        message = f"{folder}: already there: {', '.join(taken)}"
        raise UsageError(message, hint="choose another folder; init never writes over a file")
    if session.dry_run:
        session.show_plan({"files": list(files)}, "would write: " + ", ".join(files))
        return
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        message = f"cannot write in {folder}: {error.strerror}"
        raise MachineError(message) from error
    steps = "next: write your questions, then `potstill generate --plan`, then `potstill generate`"
    if ci:
        steps = "next: set the secret GEMINI_API_KEY in the repository, and MAX_USD in the job"
    session.show(
        {"folder": str(folder), "files": list(files)}, "\n".join([*(f"wrote {folder / f}" for f in files), steps])
    )


def project_files(resolved: Resolved) -> dict[str, str]:
    """The files of a new project: relative name -> content; what `--set` gave stands in its config."""
    given = {key: value for key, value in flatten(resolved.config).items() if resolved.origins[key] == "--set"}
    roles = {
        f"roles/{path.name}": path.read_text("utf-8") for path in sorted((shipped("prompts") / "roles").glob("*.yaml"))
    }
    return {
        "potstill.yaml": config_file(tuple(roles)[:1], given),
        SCHEMA_NAME: json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        PROMPTS_NAME: QUESTIONS[resolved.config.language],
        **roles,
        CI_NAME: CI_JOB,
        ".gitignore": "workspace/\n.env\n",
    }


def config_file(roles: tuple[str, ...], given: Mapping[str, Any]) -> str:
    """Every key of the config with its default or what is given, and its description, as YAML that loads unchanged.

    A key that the usage tier fills in stands there as a comment: a value in a file would hold against the tier.
    """
    lines = [f"# yaml-language-server: $schema={SCHEMA_NAME}", "# Secrets never stand here: set GEMINI_API_KEY.", ""]
    own = {"generate.prompts": [PROMPTS_NAME], "generate.roles": list(roles), **given}
    values = flatten(Config())
    written: set[str] = set()
    for key, default in values.items():
        *sections, name = key.split(".")
        for depth in range(len(sections)):
            path = ".".join(sections[: depth + 1])
            if path not in written:
                written.add(path)
                lines.append(f"{'  ' * depth}{sections[depth]}:")
        value = own.get(key, default)
        indent = "  " * len(sections)
        held = "# " if key in TIERED and key not in given else ""
        lines += [f"{indent}# {field_of(key).description}", f"{indent}{held}{name}: {_scalar(value)}"]
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    plain = json.loads(json.dumps(value, default=str))  # lists for tuples, texts for sums of money
    return (
        yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
    )
