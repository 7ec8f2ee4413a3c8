"""Servers compared over HTTP: potstill's, `transformers serve`, vLLM's CPU build; same model, same requests, in turn.

    pip install 'transformers[serving]'
    OMP_NUM_THREADS=1 python benchmarks/serve_http.py --vllm /path/to/venv/bin/vllm --rounds 3

A Llama shape of 8 layers and hidden size 512 with random weights and four LoRA adapters (r 16 on q_proj and v_proj), made
here, with a tokenizer trained on this repository's documents. Every request is a streamed chat of one of the roles, with
its system prompt. Even: 48 tokens of answer to 60 words; ragged: 8 to 88 to 5 to 100. CPU seconds are those of a server's
processes, from /proc; memory is their proportional share (PSS). `transformers serve` loads no adapters ("Unrecognized
model"), so it gets the base with one role's adapter merged, which costs it nothing, and is compared on requests for that
role; vLLM on requests mixed over the four as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx

COUNTS = (1, 4, 16, 64)
ROLES = ("one", "two", "three", "four")
SYSTEM = "You are a careful expert. You answer in plain words, briefly, and you say when you do not know something."
TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<role>' + m['role'] + '\n' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>assistant\n' }}{% endif %}"
)
VOCABULARY = 4096
TICKS = os.sysconf("SC_CLK_TCK")
START_S = 240
ROOT = Path(__file__).parents[1]


class Ask(NamedTuple):
    """One request: the user's words, tokens of answer, and the role."""

    text: str
    answer: int
    role: str


class Said(NamedTuple):
    """What a burst brought: tokens of answer, seconds to each first text, and the server's CPU seconds."""

    tokens: int
    first_s: list[float]
    cpu_s: float
    wall_s: float


def asks(count: int, kind: str, seed: int, roles: tuple[str, ...]) -> list[Ask]:
    """Random requests, dealt to the roles in turn."""
    draw = random.Random(seed)
    words = ("memory", "price", "model", "token", "server", "adapter", "cache", "budget", "latency", "answer")
    made = []
    for place in range(count):
        length, answer = (60, 48) if kind == "even" else (draw.randint(5, 100), draw.randint(8, 88))
        made.append(Ask(" ".join(draw.choices(words, k=length)), answer, roles[place % len(roles)]))
    return made


def make_students(folder: Path) -> None:
    """A base, a student of four roles with an adapter each, a student of each role alone, and a merged model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from potstill.config import StudentConfig
    from potstill.student.base import base_sha
    from potstill.student.manifest import StudentManifest, StudentRole

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<bos>", "<role>", "<end>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    raw.train(sorted(str(path) for path in (ROOT / "docs").glob("*.md")), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<end>", pad_token="<pad>", chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=512, intermediate_size=1344, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=2048, bos_token_id=0, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        model.lm_head.weight[: len(special)] = 0  # a control token is never the likeliest, so that no answer ends early
    base, workspace, merged = folder / "base", folder / "workspace", folder / "merged"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    sha = base_sha(StudentConfig(base=str(base)))
    tuned = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM",
                          init_lora_weights=False)
    )  # fmt: skip
    for name, roles in (("student", ROLES), *((role, (role,)) for role in ROLES)):
        home = workspace / "students" / name
        for role in roles:
            target = home / "adapters" / role
            tuned.save_pretrained(target)
            tokenizer.save_pretrained(target)
        manifest = StudentManifest(
            name=name, base=str(base), revision=None, base_sha=sha, template_sha="", adapters="per-role",
            roles=tuple(StudentRole(name=role, system=SYSTEM) for role in roles), plan_id="", dataset_sha={}, config={},
            versions={}, samples=0, supervised_tokens=0, train_seconds=0, created_at=datetime.now(UTC),
        )  # fmt: skip
        (home / "manifest.json").write_text(manifest.model_dump_json())
    tuned.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)


@dataclass
class Server:
    """A running server: its process group, where it answers, and what it calls a role."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    model: Callable[[str], str]

    def pids(self) -> list[int]:
        """The server's processes: those of its session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if os.getsid(int(entry.name)) == self.process.pid:
                        found.append(int(entry.name))
                except ProcessLookupError:
                    continue
        return found

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        spent = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent += int(fields[11]) + int(fields[12])
        return spent / TICKS

    def pss_mib(self) -> float:
        """Proportional share of memory, in MiB."""
        lines = "".join(Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.pids()).splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    def stop(self) -> None:
        """End all of it."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)


def start(name: str, command: list[str], port: int, log: Path, model: Callable[[str], str]) -> Server:
    """Start a server and wait until it says that it is healthy."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
           "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    server = Server(name, process, f"http://127.0.0.1:{port}", model)
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").status_code == httpx.codes.OK:
                return server
        except httpx.TransportError:
            time.sleep(1)
    message = f"{name} did not start: {log.read_text()[-2000:]}"
    raise RuntimeError(message)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def burst(server: Server, work: list[Ask]) -> Said:
    """Send all requests at once and read their streams to the end."""
    before, began = server.cpu_s(), time.monotonic()
    limits = httpx.Limits(max_connections=len(work))
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        first = await asyncio.gather(*(stream(client, server, ask) for ask in work))
    return Said(sum(ask.answer for ask in work), first, server.cpu_s() - before, time.monotonic() - began)


async def stream(client: httpx.AsyncClient, server: Server, ask: Ask) -> float:
    """Seconds to the first text of one answer, which is read to its end."""
    body = {
        "model": server.model(ask.role), "stream": True, "max_tokens": ask.answer, "temperature": 0,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ask.text}],
    }  # fmt: skip
    began, first, end = time.monotonic(), None, None
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != httpx.codes.OK:
            message = f"{server.name}: {reply.status_code} {(await reply.aread())[:300]!r}"
            raise RuntimeError(message)
        async for line in reply.aiter_lines():
            data = line.removeprefix("data: ")
            if not line.startswith("data: ") or data == "[DONE]":
                continue
            for choice in json.loads(data).get("choices", []):
                end = choice.get("finish_reason") or end
                if first is None and choice["delta"].get("content"):
                    first = time.monotonic() - began
    if end != "length":
        message = f"{server.name}: an answer ended early ({end})"
        raise RuntimeError(message)
    return first if first is not None else time.monotonic() - began


def compare(title: str, servers: list[Server], make: Callable[[int], list[Ask]], rounds: int) -> None:
    """Each server in turn, round after round; prints medians, and the median ratio of the first to each."""
    said: dict[str, list[Said]] = {server.name: [] for server in servers}
    for number in range(rounds):
        for server in servers:
            said[server.name].append(asyncio.run(burst(server, make(number))))
    rates = {name: [one.tokens / one.cpu_s for one in found] for name, found in said.items()}
    ours = rates[servers[0].name]
    for name, found in said.items():
        first = sorted(seconds for one in found for seconds in one.first_s)
        ratio = statistics.median(a / b for a, b in zip(ours, rates[name], strict=True))
        print(
            f"{title}: {name}: {statistics.median(rates[name]):.0f} tokens a CPU second"
            f" (potstill {ratio:.2f}x), {statistics.median(one.tokens / one.wall_s for one in found):.0f} a second,"
            f" first text p50 {first[len(first) // 2]:.2f} s, p95 {first[int(len(first) * 0.95)]:.2f} s",
            flush=True,
        )


def potstill(folder: Path, name: str, *more: str) -> Server:
    """Potstill's server of one student."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "potstill"), "serve-local", "-w", str(folder / "workspace"), "--name",
               name, "--port", str(port), "--no-hybrid", "--set", "serve.limits.max_batch=64",
               "--set", "student.device=cpu", *more]  # fmt: skip
    return start("potstill", command, port, folder / f"{name}.log", lambda role: role)


def transformers_serve(folder: Path, *more: str) -> Server:
    """`transformers serve` over the base with a merged adapter."""
    port = free_port()
    merged = str(folder / "merged")
    command = [str(Path(sys.executable).parent / "transformers"), "serve", merged, "--port", str(port), "--device", "cpu",
               "--dtype", "float32", *more]  # fmt: skip
    name = "transformers serve" + "".join(f" {option}" for option in more)
    return start(name, command, port, folder / f"transformers{len(more)}.log", lambda _: merged)


def vllm(folder: Path, program: str) -> Server:
    """VLLM by the line that potstill prints for it."""
    port = free_port()
    line = subprocess.run(
        [str(Path(sys.executable).parent / "potstill"), "serve-local", "-w", str(folder / "workspace"), "--engine", "vllm",
         "--print-command", "--port", str(port), "--set", "serve.limits.max_batch=64"],
        capture_output=True, text=True, check=True, cwd=folder,
    ).stdout  # fmt: skip
    command = shlex.split(line)
    return start("vllm", [program, *command[1:]], port, folder / "vllm.log", lambda role: role)


def one_role(kind: str, folder: Path, program: str | None, rounds: int) -> None:
    """Requests for one role."""
    servers = [
        potstill(folder, "student"),
        transformers_serve(folder),
        transformers_serve(folder, "--continuous-batching"),
    ]
    if program:
        servers.append(vllm(folder, program))
    measure(kind, servers, COUNTS, ROLES[:1], rounds)


def four_roles(kind: str, folder: Path, program: str | None, rounds: int) -> None:
    """Requests mixed over four roles."""
    servers = [potstill(folder, "student"), *([vllm(folder, program)] if program else [])]
    measure(f"four adapters, {kind}", servers, COUNTS[1:], ROLES, rounds)


def measure(title: str, servers: list[Server], counts: tuple[int, ...], roles: tuple[str, ...], rounds: int) -> None:
    """All counts over running servers, which are ended after it."""
    kind = "ragged" if "ragged" in title else "even"
    try:
        for server in servers:
            asyncio.run(burst(server, asks(4, kind, 99, roles)))  # all is loaded and warm before it is measured
        for count in counts:
            # One at a time costs the same for each request; 64 in a row would only take long.
            taking = [server for server in servers if count < COUNTS[-1] or server.name != "transformers serve"]
            compare(f"{title}, {count} at once", taking, lambda n, c=count: asks(c, kind, n, roles), rounds)
    finally:
        for server in servers:
            server.stop()


def memory(folder: Path, _program: str | None, _rounds: int) -> None:
    """One process with four roles against four processes with one each, after the same 16 requests."""
    for names in (("student",), ROLES):
        servers = [potstill(folder, name) for name in names]
        try:
            for server in servers:
                roles = ROLES if names == ("student",) else (server.process.args[5],)
                asyncio.run(burst(server, asks(16 // len(names), "even", 0, roles)))
            total = sum(server.pss_mib() for server in servers)
            print(f"{len(servers)} process(es), four roles: {total:.0f} MiB", flush=True)
        finally:
            for server in servers:
                server.stop()


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vllm", metavar="PROGRAM", help="vLLM's command, in an environment of its own")
    parser.add_argument("--parts", default="even,ragged,mixed-even,mixed-ragged,memory")
    given = parser.parse_args()
    parts: dict[str, Any] = {
        "even": partial(one_role, "even"),
        "ragged": partial(one_role, "ragged"),
        "mixed-even": partial(four_roles, "even"),
        "mixed-ragged": partial(four_roles, "ragged"),
        "memory": memory,
    }
    with tempfile.TemporaryDirectory() as folder:
        make_students(Path(folder))
        for part in given.parts.split(","):
            parts[part](Path(folder), given.vllm, given.rounds)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
