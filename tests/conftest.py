"""Fixtures shared by all tests: the installed command, and a clean environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).parent / "potstill"
Run = Callable[..., subprocess.CompletedProcess[str]]


def pytest_configure() -> None:
    """Tests send Ctrl-C to commands; started in the background of a shell, they would all inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no redirect and no override of the developer's own shell reaches a test."""
    for name in list(os.environ):
        if name.startswith(("POTSTILL_", "OPENAI_")) or name in {
            "GEMINI_API_KEY",
            "GOOGLE_API_KEY",
            "GOOGLE_GEMINI_BASE_URL",
        }:
            monkeypatch.delenv(name)


@pytest.fixture
def potstill(tmp_path: Path) -> Run:
    """Run the installed command in `tmp_path`; keyword arguments become environment variables."""

    def run(
        *arguments: str | Path,
        stdin: str | None = None,
        timeout_s: float = 300,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore", **(env or {})},
            input="" if stdin is None else stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            check=False,
        )

    return run
