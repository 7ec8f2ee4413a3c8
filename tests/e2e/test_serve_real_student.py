"""`potstill serve-local` as installed, with a real (tiny, untrained) student, and the official openai client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import COMMAND
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.config import StudentConfig
from potstill.student.base import base_sha
from potstill.student.manifest import StudentManifest, StudentRole

TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<role>' + m['role'] + '\n' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>assistant\n' }}{% endif %}"
)


def make_student(folder: Path) -> None:
    """A two-layer random Llama with a LoRA adapter, in a workspace's layout."""
    torch.manual_seed(0)
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<bos>", "<role>", "<end>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=260, special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE
    )
    base = folder / "base"
    tokenizer.save_pretrained(base)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    model.save_pretrained(base)
    student = folder / "workspace" / "students" / "student"
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")).save_pretrained(
        student / "adapter"
    )
    manifest = StudentManifest(
        name="student", base=str(base), revision=None, base_sha=base_sha(StudentConfig(base=str(base))),
        template_sha="", roles=(StudentRole(name="hardware-expert", system="You know hardware."),), adapters="shared",
        plan_id="", dataset_sha={}, config={}, versions={}, samples=0, supervised_tokens=0, train_seconds=0,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    (student / "manifest.json").write_text(manifest.model_dump_json())


# peft 0.21 reads an attribute that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_real_student(tmp_path: Path) -> None:
    """A streamed answer equals the plain one, usage adds up, and SIGTERM ends the command with 0."""
    make_student(tmp_path)
    command = [str(COMMAND), "serve-local", "--port", "0", "--json", "--no-hybrid", "--set", "student.device=cpu"]
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(120, process.kill)
        guard.start()
        lines = []
        while (line := process.stdout.readline()) not in {"}\n", ""}:
            lines.append(line)
        ready = json.loads("".join([*lines, "}"]))
        assert ready["models"] == ["hardware-expert", "all"]
        ask = {"model": "hardware-expert", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        with openai.OpenAI(base_url=ready["base_url"], api_key="any", max_retries=0) as client:
            plain = client.chat.completions.create(**ask)
            with client.chat.completions.create(**ask, stream=True) as stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        process.send_signal(signal.SIGTERM)
        process.wait()
        guard.cancel()
    assert text == plain.choices[0].message.content
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens
    assert process.returncode == 0
