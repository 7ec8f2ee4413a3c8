"""What happens on a bug: exit code 1, a traceback for the report, and no secret in it."""

from __future__ import annotations

import os
import subprocess
import sys

BUG = """
import sys
from potstill.cli import app

@app.app.command()
def broken() -> None:
    raise RuntimeError("boom with the key sk-very-secret")

sys.argv = ["potstill", "broken"]
app.main()
"""


def test_a_bug_ends_in_1_without_the_key() -> None:
    """An unexpected error shows its traceback and ends in 1; the key is blanked even where the error carries it."""
    env = {**os.environ, "GEMINI_API_KEY": "sk-very-secret"}
    result = subprocess.run([sys.executable, "-c", BUG], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "RuntimeError: boom" in result.stderr
    assert "[redacted]" in result.stderr
    assert "sk-very-secret" not in result.stdout + result.stderr
