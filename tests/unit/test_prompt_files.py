"""Prompts streamed from files, and files written line by line."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from potstill.errors import InputError
from potstill.files import LineFile
from potstill.prompts import PromptFiles, load_prompts


def test_each_prompt_comes_once_and_in_order(tmp_path: Path) -> None:
    """A prompt that stands in two places is given once, where it stood first; a second pass gives the same."""
    (tmp_path / "a.txt").write_text("one\ntwo\n# no prompt\none\n")
    (tmp_path / "b.jsonl").write_text('{"prompt": "two"}\n\n{"prompt": "three"}\n')
    prompts = PromptFiles([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")])
    assert [prompt.text for prompt in prompts] == ["one", "two", "three"]
    assert [prompt.text for prompt in prompts] == ["one", "two", "three"]
    assert len(prompts) == 3


def test_a_bad_line_does_not_hide_those_before_it(tmp_path: Path) -> None:
    """Prompts are read as they are asked for: a broken line raises, with its number, only when it is reached."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n{"prompt": "\xff"}\n')
    stream = iter(PromptFiles([str(path)]))
    assert [prompt.text for prompt in islice(stream, 1)] == ["fine"]
    with pytest.raises(InputError, match=r"a\.jsonl:2: not UTF-8"):
        next(stream)


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.jsonl", '{"prompt": "fine"}\n{"prompt": "\\ud83d"}\n', r"a\.jsonl:2: prompt: \\ud83d"),
        ("a.jsonl", '{"prompt": "fine", "n": ' + "1" * 5000 + "}", r"a\.jsonl:1: not JSON: a number"),
        ("a.yaml", 'prompts: ["fine", "\\ud83d"]\n', r"a\.yaml: \\ud83d"),
    ],
)
def test_what_json_can_say_and_no_file_hold_is_refused(tmp_path: Path, name: str, text: str, where: str) -> None:
    """Half a surrogate pair, which neither the ledger nor a dataset can hold, and a number without end."""
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=where):
        load_prompts([str(tmp_path / name)])


def test_a_stream_may_end_in_another_thread(tmp_path: Path) -> None:
    """A pass that fails in a worker thread is closed where its last reference goes, and raises nothing there."""
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    stream = iter(PromptFiles([str(path)]))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(next, stream).result().text == "one"
    assert next(stream).text == "two"
    stream.close()


def test_nothing_to_ask_is_an_error(tmp_path: Path) -> None:
    """No file, and a file of comments, are errors and not empty runs."""
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for files in ([], [str(tmp_path / "empty.txt")]):
        with pytest.raises(InputError):
            list(PromptFiles(files))


def test_a_line_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Until it is published the old file stands; a discarded one leaves nothing behind."""
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")
    kept, dropped = LineFile(path), LineFile(path)
    kept.write("new\n")
    dropped.write("never\n")
    assert path.read_text() == "old\n"
    kept.publish()
    kept.discard()
    dropped.discard()
    assert path.read_text() == "new\n"
    assert kept.sha256 == hashlib.sha256(b"new\n").hexdigest()
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
