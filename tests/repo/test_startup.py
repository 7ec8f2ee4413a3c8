"""Starting is light: what a command does not need, it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "sentence_transformers",
    "qdrant_client",
    "qdrant_edge",
    "google.genai",
    "fastapi",
    "uvicorn",
    "openai",
    "numpy",
    "matplotlib",
    "aiohttp",
    "rich",
)
PROBE = """
import sys
sys.argv = ["potstill", *{arguments!r}]
from potstill.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0, stop.code
sys.stderr.write("loaded:" + ",".join(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("generate", "--help"),
        ("infer", "--help"),
        ("cost", "call", "--input-tokens", "500", "--output-tokens", "2000"),
        ("cost", "estimate", "--prompts", "faq-train.en.txt"),
        ("cost", "report"),
        ("cost", "compare"),
        ("cost", "forecast"),
        ("cost", "prices"),
        ("cost", "diff", "configs/demo.yaml", "configs/demo.yaml"),
    ],
    ids=" ".join,
)
def test_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    """Help, version and a price load none of the heavy libraries."""
    probe = PROBE.format(arguments=arguments, heavy=HEAVY)
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.endswith("loaded:"), result.stderr
