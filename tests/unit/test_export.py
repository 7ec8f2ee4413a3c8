"""The dataset in other forms, and on a hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import SecretStr
from tests.samples import line_of

from potstill.config import Config, Secrets, with_values
from potstill.errors import InputError, KeyRefusedError
from potstill.generate.export import alpaca_rows, export, openai_rows, sharegpt_rows
from potstill.generate.hub import push
from potstill.generate.publish import publish
from potstill.records import Sample, Usage
from potstill.workspace import Workspace

CHAT = (("system", "Be brief."), ("user", "熱嗎？"), ("assistant", "熱。"), ("user", "Why?"), ("assistant", "Dust."))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A dataset of two samples for training and one for test."""
    place = Workspace(tmp_path)
    place.dataset.mkdir()
    for split, count in (("train", 2), ("validation", 0), ("test", 1)):
        place.split(split).write_text("".join(sample(f"{split}{number}").to_line() for number in range(count)))
    place.dataset_card.write_text("# card\n")
    place.dataset_manifest.write_text("{}\n")
    place.rejected.write_text("")
    return place


def sample(name: str = "s", chat: tuple[tuple[str, str], ...] = CHAT) -> Sample:
    """A chat of two questions."""
    return line_of(*chat, id=name, role="r", usage=Usage(input_tokens=7), cost_usd=Decimal("0.00012"))


def test_openai_and_sharegpt_keep_every_turn() -> None:
    """The same turns, under the names that each form has for them."""
    (row,) = openai_rows(sample())
    assert [(turn["role"], turn["content"]) for turn in row["messages"]] == list(CHAT)
    (row,) = sharegpt_rows(sample())
    assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt", "human", "gpt"]
    assert [turn["value"] for turn in row["conversations"]] == [content for _, content in CHAT]


def test_alpaca_has_the_last_question_and_what_came_before() -> None:
    """The last question is the instruction, earlier ones are history; a single question has none."""
    (row,) = alpaca_rows(sample())
    assert row == {
        "instruction": "Why?",
        "input": "",
        "output": "Dust.",
        "system": "Be brief.",
        "history": [["熱嗎？", "熱。"]],
    }
    (row,) = alpaca_rows(sample(chat=CHAT[1:3]))
    assert (row["system"], row["instruction"], row["history"]) == ("", "熱嗎？", [])


def test_each_split_is_a_file_and_an_empty_one_none(workspace: Workspace) -> None:
    """Files for the splits with samples, Chinese as it is; a second export leaves the same."""
    files = export(workspace, "sharegpt")
    assert [path.name for path in files] == ["train.jsonl", "test.jsonl"]
    lines = files[0].read_text("utf-8").splitlines()
    assert len(lines) == 2
    assert "熱嗎？" in lines[0]
    assert export(workspace, "sharegpt") == files


def test_a_form_that_is_there_is_kept_up_to_date(workspace: Workspace) -> None:
    """A later run that asks for no export writes the earlier ones anew: none is of another dataset."""
    asked = with_values(Config(), generate={"export": ("alpaca",)})
    publish(asked, Secrets(), workspace)
    workspace.split("train").write_text(sample("newer").to_line())
    assert workspace.export("alpaca", "train", "jsonl") in publish(Config(), Secrets(), workspace).files
    assert len(workspace.export("alpaca", "train", "jsonl").read_text().splitlines()) == 1


def test_parquet_is_read_back_as_it_was(workspace: Workspace) -> None:
    """Every field comes back from Parquet, money as the same decimal text."""
    from pyarrow.parquet import read_table

    files = export(workspace, "parquet")
    assert [path.name for path in files] == ["train.parquet", "test.parquet"]
    rows = read_table(files[0]).to_pylist()
    assert rows == [json.loads(sample(f"train{number}").to_line()) for number in range(2)]
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["test.parquet", "train.parquet"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as a push of small files needs."""

    protocol_version = "HTTP/1.1"
    status = 200
    seen: list[tuple[str, str | None, bytes]]

    def do_POST(self) -> None:
        """Take a repository, an upload plan or a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        answer: dict = {"url": f"http://{self.headers['Host']}/datasets/someone/cards", "name": "someone/cards"}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        if "/commit/" in self.path:
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/datasets/someone/cards/commit/1",
                "commitOid": "1",
                "pullRequestUrl": None,
            }
        self.reply(answer)

    def do_GET(self) -> None:
        """Say what the repository is."""
        self.reply({"id": "someone/cards", "sha": "0", "siblings": [], "private": True})

    def reply(self, answer: dict) -> None:
        """Send JSON with the class's status."""
        content = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def hub(status: int = 200) -> Iterator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    """A hub on this machine; gives its address and what it was sent."""
    seen: list[tuple[str, str | None, bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AHub", (Hub,), {"status": status, "seen": seen}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_push_sends_the_dataset_and_nothing_else(workspace: Workspace) -> None:
    """A private dataset repository gets card, manifest and splits with the token; not what was sifted out."""
    with hub() as (address, seen):
        url = push(workspace, "someone/cards", SecretStr("hf_token"), endpoint=address)
    assert url == f"{address}/datasets/someone/cards"
    assert {token for _, token, _ in seen} == {"Bearer hf_token"}
    assert b"private" in seen[0][2]
    commit = next(body for path, _, body in seen if "/commit/" in path).decode()
    sent = {row["value"]["path"] for line in commit.splitlines() if (row := json.loads(line))["key"] == "file"}
    assert sent == {"README.md", "manifest.json", "train.jsonl", "validation.jsonl", "test.jsonl"}


def test_a_refused_token_and_no_dataset_are_told_apart(workspace: Workspace, tmp_path: Path) -> None:
    """A token that the hub refuses is a key error; a workspace without a dataset an input error."""
    with hub(status=403) as (address, _), pytest.raises(KeyRefusedError, match="403"):
        push(workspace, "someone/cards", SecretStr("hf_token"), endpoint=address)
    with pytest.raises(InputError, match="no dataset"):
        push(Workspace(tmp_path / "elsewhere"), "someone/cards", SecretStr("hf_token"))
    with pytest.raises(KeyRefusedError, match="HF_TOKEN"):
        push(workspace, "someone/cards", None)
