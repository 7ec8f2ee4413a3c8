"""`potstill serve-local` as installed, keyed, with real (tiny, untrained) students: clients, and roles that change."""

from __future__ import annotations

import copy
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.conftest import COMMAND, Run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from potstill.config import StudentConfig
from potstill.errors import InputError, KeyRefusedError
from potstill.files import write_atomic
from potstill.records import Message
from potstill.student.answers import StudentQuery
from potstill.student.base import base_sha
from potstill.student.local import load_student
from potstill.student.manifest import StudentManifest, StudentRole, fingerprint_on_disk
from potstill.student.remote import RemoteStudent
from potstill.workspace import Workspace

TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<role>' + m['role'] + '\n' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>assistant\n' }}{% endif %}"
)


# peft 0.21 reads an attribute that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
KEY, ADMIN = "the-servers-own-key", "the-admins-own-key"
SYSTEM = "You know hardware."


def make_base(folder: Path) -> LlamaForCausalLM:
    """A two-layer random Llama with a tokenizer of bytes."""
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
    return model


def make_student(folder: Path, base: LlamaForCausalLM, name: str, *roles: str) -> None:
    """A student of these roles with one adapter that changes what the base says, in a workspace's layout."""
    student = folder / "workspace" / "students" / name
    torch.manual_seed(len(name))
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(copy.deepcopy(base), lora).save_pretrained(student / "adapter")
    where = str(folder / "base")
    manifest = StudentManifest(
        name=name, base=where, revision=None, base_sha=base_sha(StudentConfig(base=where)),
        template_sha="", roles=tuple(StudentRole(name=role, system=SYSTEM) for role in roles), adapters="shared",
        plan_id="", dataset_sha={}, config={}, versions={}, samples=0, supervised_tokens=0, train_seconds=0,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    (student / "manifest.json").write_text(manifest.model_dump_json())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A running server of the student `student`, beside which `second` waits; SIGTERM ends it with 0."""
    folder = tmp_path_factory.mktemp("served")
    base = make_base(folder)
    make_student(folder, base, "student", "hardware-expert", "cost-analyst")
    make_student(folder, base, "second", "hardware-expert")
    command = [str(COMMAND), "serve-local", "--port", "0", "--json", "--no-hybrid", "--set", "student.device=cpu"]
    keys = {"POTSTILL_SERVE_API_KEYS": KEY, "POTSTILL_SERVE_ADMIN_KEYS": ADMIN}
    env = {**os.environ, **keys, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(120, process.kill)
        guard.start()
        lines = []
        while (line := process.stdout.readline()) not in {"}\n", ""}:
            lines.append(line)
        yield {**json.loads("".join([*lines, "}"])), "workspace": folder / "workspace"}
        process.send_signal(signal.SIGTERM)
        process.wait()
        guard.cancel()
    assert process.returncode == 0


def question(text: str = "hello", role: str = "hardware-expert") -> StudentQuery:
    """A question for a role."""
    return StudentQuery(role=role, messages=(Message(role="user", content=text),), max_new_tokens=8)


def test_stream_equals_plain(served: dict[str, Any]) -> None:
    """A streamed answer equals the plain one, and usage adds up."""
    assert served["models"] == ["hardware-expert", "cost-analyst", "all"]
    ask = {"model": "hardware-expert", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
    with openai.OpenAI(base_url=served["base_url"], api_key=KEY, max_retries=0) as client:
        plain = client.chat.completions.create(**ask)
        with client.chat.completions.create(**ask, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == plain.choices[0].message.content
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + plain.usage.completion_tokens


def test_student_behind_a_url(served: dict[str, Any]) -> None:
    """The same server as `infer.student_url`: its key opens it, its roles answer with confidence, refusals are told."""
    systems = {"hardware-expert": SYSTEM, "cost-analyst": SYSTEM, "nobody": SYSTEM}
    student = RemoteStudent(served["base_url"], systems, KEY, 60)
    answers = student.answer([question(), question(role="cost-analyst")])
    assert [answer.role for answer in answers] == ["hardware-expert", "cost-analyst"]
    assert all(answer.mean_logprob < 0 for answer in answers)
    with pytest.raises(InputError, match="404"):
        student.answer([question(role="nobody")])
    with pytest.raises(KeyRefusedError):
        RemoteStudent(served["base_url"], systems, "a-wrong-key", 60).answer([question()])


def test_fingerprint_on_disk_is_that_of_the_loaded_student(tmp_path: Path) -> None:
    """A student has one fingerprint, loaded or not, so a server and `infer` share a cache; it follows adapter and prompt."""
    base = make_base(tmp_path)
    make_student(tmp_path, base, "first", "hardware-expert")
    files = Workspace(tmp_path / "workspace").student("first")
    loaded = load_student(files, StudentConfig(base=str(tmp_path / "base"), device="cpu"))
    before = fingerprint_on_disk(files)
    assert loaded.fingerprint == before
    config = files.adapter / "adapter_config.json"
    write_atomic(config, config.read_text("utf-8").replace('"lora_alpha": 8', '"lora_alpha": 16'))
    changed = fingerprint_on_disk(files)
    write_atomic(files.manifest, files.manifest.read_text("utf-8").replace(SYSTEM, "You know prices."))
    assert len({before, changed, fingerprint_on_disk(files)}) == 3
    (files.adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="no adapter"):
        fingerprint_on_disk(files)


def test_a_workspace_that_cannot_be_written_is_told_before_hybrid_listens(potstill: Run, tmp_path: Path) -> None:
    """Its ledger could not be kept: code 7 with the folder's name, in place of a server whose `hybrid` fails every question."""
    make_student(tmp_path, make_base(tmp_path), "student", "hardware-expert", "cost-analyst")
    (tmp_path / "workspace" / "serve.jsonl").mkdir()
    done = potstill("serve-local", "--port", "0", "--set", "student.device=cpu", timeout_s=60)
    assert done.returncode == 7
    assert "workspace cannot be written" in done.stderr
    assert "--no-hybrid" in done.stderr


def test_students_change_under_load(served: dict[str, Any]) -> None:
    """While four clients ask without pause a second student takes over and goes: nobody is refused, each change is heard."""
    student = RemoteStudent(served["base_url"], {"hardware-expert": SYSTEM}, KEY, 60)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    heard: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            said.put(student.answer([question()])[0].text)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    before = student.answer([question()])[0].text
    with httpx.Client(base_url=served["url"], headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60) as admin:
        for client in clients:
            client.start()
        for name in ("second", "student", "second"):
            changed = admin.post("/v1/roles", json={"student": name})
            assert (changed.status_code, changed.json()["data"][0]["student"]) == (200, name)
            after = student.answer([question()])[0].text
            while (text := said.get(timeout=60)) != after:
                heard.add(text)
        done.set()
        for client in clients:
            client.join()
        metrics = admin.get("/metrics").text
    assert before != after
    assert heard <= {before, after}
    hits = next(line for line in metrics.splitlines() if line.startswith("potstill_prefix_hits_total "))
    assert float(hits.split()[1]) > 0


@pytest.mark.parametrize(
    "name", ["../second", "..", ".", "/etc", "second/../second", "", "a\u0000b", "x" * 65, "students/second"]
)
def test_a_student_is_a_name_never_a_path(served: dict[str, Any], name: str) -> None:
    """What could lead out of the workspace's students is 400 before anything is opened."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    refused = httpx.post(f"{served['url']}/v1/roles", json={"student": name}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "student")


def test_a_student_that_cannot_be_served_is_named_without_its_path(served: dict[str, Any]) -> None:
    """An unknown student, and one without its adapter, are 400: the answer names the student, and no folder."""
    students = served["workspace"] / "students"
    shutil.copytree(students / "second", students / "torn")
    (students / "torn" / "adapter" / "adapter_model.safetensors").unlink()
    for name in ("nobody", "torn"):
        headers = {"Authorization": f"Bearer {ADMIN}"}
        refused = httpx.post(f"{served['url']}/v1/roles", json={"student": name}, headers=headers)
        message = refused.json()["error"]["message"]
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "student")
        assert message == f"student: {name!r} cannot be served here; the server's log says why"


@pytest.mark.parametrize("role", ["all", "hybrid", "all-MiniLM-L6-v2"])
def test_a_role_may_not_have_another_models_name(served: dict[str, Any], potstill: Run, role: str) -> None:
    """It could not be asked: such a student is refused at the start (code 2, with the name), and as a successor (400)."""
    students = served["workspace"] / "students"
    shutil.copytree(students / "second", students / f"named-{role}")
    manifest = students / f"named-{role}" / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"hardware-expert"', f'"{role}"'))
    options = ("-w", served["workspace"], "--name", f"named-{role}", "--port", "0", "--set", "student.device=cpu")
    done = potstill("serve-local", *options, timeout_s=60)
    assert done.returncode == 2
    assert f"the role {role!r} cannot be served" in done.stderr
    headers = {"Authorization": f"Bearer {ADMIN}"}
    assert (
        httpx.post(f"{served['url']}/v1/roles", json={"student": f"named-{role}"}, headers=headers).status_code == 400
    )


def test_roles_are_dropped_by_an_admin(served: dict[str, Any]) -> None:
    """DELETE takes a role out of the models; a query key may not, an unknown role or a path is 404, the last one stays."""
    with httpx.Client(base_url=served["url"], headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60) as admin:
        by_query_key = admin.delete("/v1/roles/cost-analyst", headers={"Authorization": f"Bearer {KEY}"})
        strange = [admin.delete(f"/v1/roles/{name}").status_code for name in ("nobody", "..%2Fsecond", "%00")]
        dropped = admin.delete("/v1/roles/cost-analyst")
        last = admin.delete("/v1/roles/hardware-expert")
        models = [model["id"] for model in admin.get("/v1/models").json()["data"]]
    assert (by_query_key.status_code, strange, dropped.status_code, last.status_code) == (
        403,
        [404, 404, 404],
        200,
        409,
    )
    assert "cost-analyst" not in models
