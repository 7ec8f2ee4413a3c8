"""The GPU benchmark where there is no GPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so() -> None:
    """Without CUDA the script ends in code 7 with a sentence, and prints no figure."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7
    assert "needs a CUDA card" in done.stderr
    assert not done.stdout


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_every_kind_of_part_runs_on_a_tiny_shape() -> None:
    """Checks, both trainers, fp16, QLoRA and serving run through on a processor, and give what a results page needs."""
    wanted = ("loss", "packing", "llama-8b, 4096", "fp16", "qlora", "serving")
    chosen = [word for part in wanted for word in ("--part", part)]
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--here", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {
        key: value
        for line in done.stdout.splitlines()
        if line.startswith('{"')
        for key, value in json.loads(line).items()
    }
    trained = {"tokens_per_s", "mfu", "peak_gib", "estimated_gib", "estimate_over_peak", "split_at", "seconds"}
    assert set(found["llama-8b, 4096 tokens, checkpointing False"]) == trained
    assert set(found["fp16 as on a T4, llama-1b"]) == trained
    assert {"tokens_per_s", "peak_gib"} <= set(found["trl, llama-8b, 4096 tokens, checkpointing False"])
    assert set(found["qlora, llama-8b"]) == trained or found["qlora, llama-8b"]["skipped"] == "needs bitsandbytes"
    rates = [rate for name, rate in found["serving, llama-8b"].items() if "uniform" in name or "ragged" in name]
    assert len(rates) == 5
    assert all(rate > 0 for rate in rates)


def test_a_part_that_takes_its_process_along_is_reported(gpu: ModuleType) -> None:
    """A part that crashes or hangs costs its own figures only, and one that could not end in time is not begun."""
    assert "exit code -6" in gpu.apart(["-c", "import os; os.abort()"], "x", 60)["failed"]
    assert "no end" in gpu.apart(["-c", "import time; time.sleep(600)"], "x", gpu.LEAST_S + 0.01, 1)["failed"]
    assert gpu.apart(["-c", 'print(\'{"x": {"figure": 1}}\')'], "x", 60) == {"figure": 1}
    assert gpu.apart(["-c", ""], "x", 1) == {"skipped": "no time left"}
