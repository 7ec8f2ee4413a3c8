"""A model's name that is no folder: what is said, and how long it takes where no hub answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from potstill.config import StudentConfig
from potstill.errors import InputError, MachineError
from potstill.student import hub
from potstill.student.base import load_base, load_tokenizer
from potstill.student.shape import read_shape

NAME = "nobody/such-model"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that takes connections and never answers."""
    assert all((AutoConfig, AutoTokenizer, AutoModelForCausalLM)), "loaded now: that takes seconds of its own"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hub, "LOOK_S", 0.5)
        yield


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("load", [load_tokenizer, load_base, read_shape])
def test_a_hub_that_is_away_is_asked_once(load: Callable[[StudentConfig], Any]) -> None:
    """Tokenizer, weights and config end within seconds, in code 7 with a hint, and leave the libraries online."""
    started = time.monotonic()
    with pytest.raises(MachineError, match=NAME) as failed:
        load(StudentConfig(base=NAME, device="cpu"))
    assert time.monotonic() - started < 10, "the libraries ask six times, for 23 s and more"
    assert "folder" in (failed.value.hint or "")
    assert not constants.HF_HUB_OFFLINE


def test_only_what_is_no_folder_is_told(tmp_path: Path) -> None:
    """A folder is read in silence; a name is told before it is looked for, with the place."""
    told: list[str] = []
    hub.tell(str(tmp_path), told.append)
    assert not told
    hub.tell(NAME, told.append)
    assert [NAME in line and constants.ENDPOINT in line for line in told] == [True]


def test_a_path_that_is_wrong_is_not_looked_for(tmp_path: Path) -> None:
    """A path without a folder, and a file, are wrong input at once: code 2, not a look at the hub."""
    (tmp_path / "file").touch()
    for name in ("./no/such/base", "/no/such/base", "../base", "a/b/c", str(tmp_path / "file")):
        with pytest.raises(InputError, match="there is no folder"):
            hub.tell(name, print)
    for name in (NAME, "gpt2", "Qwen/Qwen2.5-0.5B"):
        hub.check_name(name)
