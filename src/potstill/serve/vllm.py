"""The line that starts vLLM with a student's base and adapters. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from potstill.config import ServeConfig, StudentConfig
from potstill.student.manifest import StudentManifest
from potstill.student.template import VALUES

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`; its default, 16, refuses larger adapters."""
KEY_VARIABLE = "VLLM_API_KEY"
"""Where vLLM reads its one key, so that it does not stand on a command line."""


def adapter_rank(config: str) -> int:
    """The rank in an adapter's `adapter_config.json`."""
    return int(json.loads(config)["r"])


def base_context(config: str) -> int | None:
    """The tokens that a base looks at, from its `config.json`; None where it does not say."""
    length = json.loads(config).get("max_position_embeddings")
    return None if length is None else int(length)


def vllm_command(
    student: StudentConfig,
    serve: ServeConfig,
    base: str,
    folders: Mapping[str, Path],
    rank: int,
    context: int | None = None,
) -> list[str]:
    """`vllm serve` with one model a role. `rank` is the largest of the adapters', `context` the base's own, if known.

    vLLM adds no system prompt of its own: a request must bring its role's, as it stands in the student's manifest. What
    the template is given is what the student was trained with; sampling defaults are vLLM's, stop tokens still the base's.
    """
    length = serve.limits.max_prompt_tokens + serve.limits.max_new_tokens
    modules = [json.dumps({"name": role, "path": str(folder.resolve())}) for role, folder in folders.items()]
    command = [
        "vllm", "serve", base,
        "--host", serve.host,
        "--port", str(serve.port),
        "--enable-lora",
        "--lora-modules", *modules,
        "--max-loras", str(len(set(folders.values()))),
        "--max-lora-rank", str(next(allowed for allowed in RANKS if allowed >= rank)),
        "--max-num-seqs", str(serve.limits.max_batch),
        "--max-model-len", str(length if context is None else min(length, context)),
        "--generation-config", "vllm",
        "--enable-request-id-headers",
        "--default-chat-template-kwargs", json.dumps(VALUES),
        "--dtype", student.dtype,
    ]  # fmt: skip
    if student.revision is not None:
        command += ["--revision", student.revision]
    if student.quantization == "nf4":
        command += ["--quantization", "bitsandbytes"]
    return command


def systems_of(manifest: StudentManifest) -> Sequence[str]:
    """A line for each role: the system prompt that a request must bring."""
    return [f"{role.name}: {role.system}" for role in manifest.roles]
