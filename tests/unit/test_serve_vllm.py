"""The lines that start other engines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.config import ServeConfig, StudentConfig
from potstill.errors import InputError
from potstill.serve.exported import export_commands
from potstill.serve.vllm import RANKS, vllm_command
from potstill.student.template import VALUES

FLAGS = {
    "--host", "--port", "--lora-modules", "--default-chat-template-kwargs",
    "--enable-request-id-headers",  # vllm/entrypoints/*/cli_args.py
    "--enable-lora", "--max-loras", "--max-lora-rank", "--max-num-seqs", "--max-model-len", "--generation-config",
    "--dtype", "--revision", "--quantization",  # vllm/engine/arg_utils.py
}  # fmt: skip
"""Flags of `vllm serve` in the wheels of 0.32.0 (CPU, which also started by the whole line) and 0.33.0, read 2026-11-24."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""`MaxLoRARanks` of vllm/config/lora.py in the same wheels."""


def test_every_flag_is_one_of_vllms() -> None:
    """The longest line that is ever printed has no flag that vLLM does not know, and each once."""
    student, serve = StudentConfig(quantization="nf4", revision="abc"), ServeConfig()
    line = vllm_command(student, serve, "base", {"one": Path("a")}, 20, 1024)
    flags = [part for part in line if part.startswith("--")]
    assert set(flags) == FLAGS
    assert len(flags) == len(FLAGS)
    assert set(RANKS) <= set(LORA_RANKS)


def test_exported_students_are_served_by_their_own_programs(tmp_path: Path) -> None:
    """Ollama gets a line for each role, llama.cpp a server for each file, and without an export it is said how to make one."""
    with pytest.raises(InputError) as caught:
        export_commands(tmp_path, ServeConfig(engine="ollama"))
    assert "distill --export" in caught.value.hint
    for role in ("one", "two"):
        (tmp_path / role).mkdir()
        for name in (f"Modelfile.{role}", f"student-{role}.gguf"):
            (tmp_path / role / name).touch()
    ollama = export_commands(tmp_path, ServeConfig(engine="ollama"))
    assert ollama[1] == ["ollama", "create", "two", "-f", str(tmp_path / "two" / "Modelfile.two")]
    servers = export_commands(tmp_path, ServeConfig(engine="llama.cpp", port=9000))
    assert [line[line.index("--port") + 1] for line in servers] == ["9000", "9001"]
    assert [line[line.index("--alias") + 1] for line in servers] == ["one", "two"]


def test_line_has_a_module_for_each_role_and_a_rank_that_vllm_takes() -> None:
    """Each role is a model, the rank is rounded up to one of vLLM's, and no key stands on the line."""
    folders = {"one": Path("a/one"), "two": Path("a/two")}
    command = vllm_command(StudentConfig(quantization="nf4", revision="abc"), ServeConfig(port=9), "base", folders, 20)
    assert command[:3] == ["vllm", "serve", "base"]
    place = command.index("--lora-modules")
    modules = [json.loads(part) for part in command[place + 1 : place + 3]]
    assert modules == [{"name": role, "path": str(folder.resolve())} for role, folder in folders.items()]
    assert command[command.index("--max-lora-rank") + 1] == "32"
    assert json.loads(command[command.index("--default-chat-template-kwargs") + 1]) == VALUES
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
