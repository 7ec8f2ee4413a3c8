"""The line that starts vLLM."""

from __future__ import annotations

from pathlib import Path

from potstill.config import ServeConfig, StudentConfig
from potstill.serve.vllm import vllm_command


def test_line_has_a_module_for_each_role_and_a_rank_that_vllm_takes() -> None:
    """Each role is a model, the rank is rounded up to one of vLLM's, and no key stands on the line."""
    folders = {"one": Path("a/one"), "two": Path("a/two")}
    command = vllm_command(StudentConfig(quantization="nf4", revision="abc"), ServeConfig(port=9), "base", folders, 20)
    assert command[:3] == ["vllm", "serve", "base"]
    place = command.index("--lora-modules")
    assert command[place + 1 : place + 3] == ['{"name": "one", "path": "a/one"}', '{"name": "two", "path": "a/two"}']
    assert command[command.index("--max-lora-rank") + 1] == "32"
    assert command[command.index("--max-loras") + 1] == "2"
    assert command[command.index("--revision") + 1] == "abc"
    assert "bitsandbytes" in command
    assert not any("key" in part for part in command)


def test_roles_that_share_an_adapter_need_one_place() -> None:
    """Two roles over one shared adapter are two models and one LoRA in memory."""
    folders = {"one": Path("a"), "two": Path("a")}
    command = vllm_command(StudentConfig(), ServeConfig(), "base", folders, 16, context=1024)
    assert command[command.index("--max-model-len") + 1] == "1024"
    assert command[command.index("--max-loras") + 1] == "1"
    assert command[command.index("--max-lora-rank") + 1] == "16"
