"""A base that is not whole, or not of one piece: said in one line before anything is trained, and never made up for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import save_tiny
from tests.unit.test_dataset_reading import line, write

from potstill.config import Config, with_values
from potstill.distill.prepare import prepare
from potstill.distill.train import lora_model
from potstill.errors import ConfigError, InputError, UsageError
from potstill.student.base import load_base, load_tokenizer
from potstill.workspace import Workspace


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny base, to be damaged."""
    save_tiny(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def config(tmp_path: Path, base: Path) -> Config:
    """Two samples to train on and one to judge by, over that base."""
    write(Workspace(tmp_path / "w"), train=line() + line("no"), test=line(question="what else is there"))
    return with_values(Config(workspace=str(tmp_path / "w")), student={"base": str(base), "device": "cpu"})


def described(**changes: Any) -> Callable[[Path], None]:
    """A base whose config.json says something else."""

    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def pickled(base: Path) -> None:
    """The same weights as a pickle alone."""
    weights = base / "model.safetensors"
    torch.save(load_file(weights), base / "pytorch_model.bin")
    weights.unlink()


def cut(base: Path) -> None:
    """A download that was cut off."""
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (pickled, "no file named model.safetensors"),
        (cut, "incomplete metadata"),
        (lambda base: (base / "model.safetensors").write_bytes(b""), "header too small"),
        (described(num_hidden_layers=4), r"lack model\.layers\.2\.\S+ and \d+ more"),
        (described(hidden_size=64), "another shape for"),
        (described(model_type="t5"), "configuration class"),
    ],
)
def test_weights_that_are_not_all_there_are_refused(
    config: Config, base: Path, change: Callable[[Path], Any], said: str
) -> None:
    """Missing layers are not made up at random, pickles are not read, and a cut file is no bug."""
    change(base)
    with pytest.raises(InputError, match=said):
        load_base(config.student)


def test_no_code_of_a_base_is_run(config: Config, base: Path, tmp_path: Path) -> None:
    """A config that names code of its own is refused where that is needed, and else read without it."""
    code = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    (base / "evil.py").write_text(code)
    named = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    described(auto_map=named)(base)
    assert load_base(config.student) is not None
    described(auto_map=named, model_type="evil")(base)
    with pytest.raises(InputError, match="custom code"):
        prepare(config, Workspace(Path(config.workspace)))
    assert not (tmp_path / "ran").exists()


def changed_tokenizer(base: Path, *, special: bool) -> None:
    """A tokenizer with a token more than the embedding has rows."""
    tokenizer = load_tokenizer(Config().student.model_copy(update={"base": str(base)}))
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    else:
        tokenizer.add_tokens(["brief"])
    tokenizer.save_pretrained(base)


def test_a_token_without_a_row_is_refused(config: Config, base: Path) -> None:
    """Text that would be looked up behind the embedding's end is refused; a control token of that kind never comes up."""
    workspace = Workspace(Path(config.workspace))
    changed_tokenizer(base, special=True)  # as in Gemma 3's text models
    assert prepare(config, workspace).train.rows
    changed_tokenizer(base, special=False)
    with pytest.raises(InputError, match="no embedding for 'brief'"):
        prepare(config, workspace)


def test_what_cannot_be_learned_is_said_at_once(config: Config, base: Path) -> None:
    """Prompts that leave no room, samples beyond the base's context, and roles without samples or a folder's name of their own."""
    workspace = Workspace(Path(config.workspace))
    with pytest.raises(InputError, match=r"fills distill\.max_length \(8 tokens\)"):
        prepare(with_values(config, distill={"max_length": 8}), workspace)
    described(max_position_embeddings=20)(base)
    with pytest.raises(InputError, match="looks at 20") as caught:
        prepare(config, workspace)
    assert "distill.max_length=20" in (caught.value.hint or "")
    described(max_position_embeddings=2048)(base)
    per_role = with_values(config, distill={"adapters": "per-role"})
    held_out = workspace.split("test")
    held_out.write_text(held_out.read_text() + line(question="and?").replace('"expert"', '"other"'))
    with pytest.raises(InputError, match="'other' has held-out samples, but none to train"):
        prepare(per_role, workspace)
    for split in ("train", "test"):
        path = workspace.split(split)
        path.write_text(path.read_text().replace('"other"', '"expert"').replace('"expert"', '"\u5ba2\u670d"'), "utf-8")
    with pytest.raises(UsageError, match="no valid role name"):
        prepare(per_role, workspace)
    assert prepare(config, workspace).data.roles[0].name == "\u5ba2\u670d"


def test_target_modules_that_a_base_lacks_are_named(config: Config) -> None:
    """The error names what was asked for, its hint what there is."""
    with pytest.raises(ConfigError, match="no c_attn") as caught:
        lora_model(
            load_base(config.student), with_values(config, distill={"lora": {"target_modules": ["c_attn"]}}).distill
        )
    assert "q_proj, up_proj, v_proj" in (caught.value.hint or "")


def test_of_several_templates_the_default_one_is_taken(base: Path) -> None:
    """Some bases bring a template for tools beside the one for chats."""
    tokenizer = load_tokenizer(Config().student.model_copy(update={"base": str(base)}))
    plain = tokenizer.chat_template
    tokenizer.chat_template = {"default": plain, "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(base)
    assert load_tokenizer(Config().student.model_copy(update={"base": str(base)})).chat_template == plain
