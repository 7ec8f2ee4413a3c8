"""Counting by a real tokenizer where one is at hand, by the formula where none is; each says which, and how sure it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from potstill.errors import InputError
from potstill.pricing.counting import find_counter
from potstill.pricing.tokens import estimate_tokens


def save(path: Path, words: int, *more: str) -> None:
    """A real tokenizer of so many words."""
    vocabulary = {word: number for number, word in enumerate([*more, *(f"w{n}" for n in range(words))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(path))


@pytest.mark.parametrize("language", ["en", "zh-TW", "fr"])
def test_the_formula_states_its_error(language: str) -> None:
    """Without a tokenizer the formula counts, and its basis names the error in this language."""
    counter = find_counter(None, language)
    assert counter.count("How much memory?") == estimate_tokens("How much memory?")
    assert "%" in counter.basis
    assert language in counter.basis
    assert 0 < counter.low < 0.2
    assert 0 < counter.high < 0.2


def test_a_tokenizer_counts_by_file_or_by_folder(tmp_path: Path) -> None:
    """A large vocabulary counts its own tokens, with the doubt that it is not Gemini's; Gemma's has none stated."""
    save(tmp_path / "tokenizer.json", 100_001)
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        counter = find_counter(str(name), "en")
        assert counter.count("w1 w2 w3") == 3
        assert (counter.low, counter.high) == (0.07, 0.07)
    save(tmp_path / "tokenizer.json", 100_001, "<start_of_turn>")
    assert find_counter(str(tmp_path), "en").low == 0
    assert "assumption" in find_counter(str(tmp_path), "en").basis


def test_a_gemma_student_on_this_disk_counts_by_itself(tmp_path: Path) -> None:
    """A base folder with Gemma's vocabulary is used without being named; another base, or none, leaves the formula."""
    save(tmp_path / "tokenizer.json", 100_001, "<start_of_turn>")
    assert "Gemma" in find_counter(None, "en", str(tmp_path)).basis
    save(tmp_path / "tokenizer.json", 100_001)
    for base in (str(tmp_path), "", "Qwen/Qwen2.5-3B-Instruct", "google/gemma-not-in-the-cache", "gemma: no name"):
        assert "formula" in find_counter(None, "en", base).basis


def test_a_gemma_in_the_hubs_cache_is_found_without_a_network(tmp_path: Path) -> None:
    """What an earlier download left in the cache is read from there."""
    commit, repository = "0" * 40, tmp_path / "models--google--gemma-3-1b-it"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save(repository / "snapshots" / commit / "tokenizer.json", 100_001, "<start_of_turn>")
    script = (
        "from potstill.pricing.counting import find_counter as f; print(f(None, 'en', 'google/gemma-3-1b-it').basis)"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert "Gemma" in found.stdout


def test_what_cannot_count_is_refused(tmp_path: Path) -> None:
    """A missing file, one that is no tokenizer, and a vocabulary so small that its counts mean nothing."""
    with pytest.raises(InputError, match="not found"):
        find_counter(str(tmp_path / "none.json"), "en")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer"):
        find_counter(str(tmp_path / "bad.json"), "en")
    save(tmp_path / "small.json", 2000)
    with pytest.raises(InputError, match="2000"):
        find_counter(str(tmp_path / "small.json"), "en")
