"""The page that a benchmark writes: on which machine, when, at which commit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def head(title: str, about: str = "") -> list[str]:
    """A page's title, where and when, and a word about what was measured."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(line.split(":")[1].strip() for line in facts if "model name" in line)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    where = (
        f"{os.cpu_count()} cores, {model}, load average {os.getloadavg()[0]:.1f} at the start (shared machine), "
        f"{datetime.now(UTC):%Y-%m-%d}, commit {git.stdout.strip()}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}."
    )
    return [f"# {title}", "", f"{where} {about}".rstrip()]


def deliver(page: Sequence[str], out: Path | None) -> None:
    """Print the page, and write it where a file is named."""
    text = "\n".join(page) + "\n"
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")
