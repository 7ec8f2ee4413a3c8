"""Counting a text's tokens: by a real tokenizer where one is at hand, else by the formula, each with its stated error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from potstill.errors import InputError, MachineError
from potstill.pricing.tokens import STATED_ERROR, estimate_tokens

GEMMA_MARK = "<start_of_turn>"
"""A token that Gemma's vocabulary has and others have not."""

LEAST_VOCABULARY = 100_000
"""A smaller vocabulary makes several tokens where Gemini makes one: its counts say nothing about the bill."""

OTHER_VOCABULARY_ERROR = 0.07
"""Qwen's counts were 0.95 to 1.07 of Gemma's on English and Traditional Chinese; taken for any large vocabulary."""


@dataclass(frozen=True)
class Counter:
    """A way to count; `low` and `high`: by which share the true total may be below and above the counted one."""

    count: Callable[[str], int]
    basis: str
    low: float
    high: float


def find_counter(tokenizer: str | None, language: str, base: str = "") -> Counter:
    """The tokenizer of `prices.tokenizer`, else that of a Gemma student which is on this disk, else the formula.

    Raises InputError for a file that is no tokenizer, MachineError where the library for it is not installed.
    """
    if tokenizer is not None:
        return real_tokenizer(Path(tokenizer))
    found = gemma_at_hand(base) if find_spec("tokenizers") else None
    return formula(language) if found is None else real_tokenizer(found)


def gemma_at_hand(base: str) -> Path | None:
    """The tokenizer of a base with Gemma's vocabulary: in its folder, or in the hub's cache. Nothing is downloaded."""
    if "gemma" in base.lower() and not Path(base).is_dir():
        try:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(base, "tokenizer.json")
        except (ImportError, ValueError):  # no hub library, or no name of the hub's
            return None
        return Path(cached) if isinstance(cached, str) else None
    file = Path(base) / "tokenizer.json"
    if not base or not file.is_file() or GEMMA_MARK.encode() not in file.read_bytes():
        return None
    return file


def formula(language: str) -> Counter:
    """The formula with its measured error; an estimate that is too high by 6 % means a bill that is 6 % lower."""
    under, over = STATED_ERROR.get(language, (-0.1, 0.1))
    low, high = 1 - 1 / (1 + over), 1 / (1 + under) - 1
    return Counter(estimate_tokens, f"formula, {under:+.0%} to {over:+.0%} on a total in {language}", low, high)


def real_tokenizer(path: Path) -> Counter:
    """A `tokenizer.json` of a large vocabulary: Gemma's, which counts as Gemini 2.x does, or another."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        message = f"tokenizer not found: {file}"
        raise InputError(message, hint="prices.tokenizer names a tokenizer.json, or its folder")
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        message = "prices.tokenizer needs the tokenizers library"
        raise MachineError(message, hint="pip install 'potstill[local]', or unset it to use the formula") from error
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception and nothing narrower
        message = f"{file}: not a tokenizer: {error}"
        raise InputError(message) from error
    size = found.get_vocab_size()
    if size < LEAST_VOCABULARY:
        message = f"{file}: a vocabulary of {size} counts nothing like Gemini's"
        raise InputError(message, hint="use Gemma's tokenizer, or another of at least 100,000 tokens")
    is_gemma = GEMMA_MARK in found.get_vocab()
    error_share = 0.0 if is_gemma else OTHER_VOCABULARY_ERROR
    kind = "Gemma's vocabulary; that Gemini 3.x counts alike is an assumption" if is_gemma else "not Gemini's own"
    return Counter(
        lambda text: len(found.encode(text, add_special_tokens=False).ids),
        f"tokenizer {file.parent.name}/{file.name}, {size} tokens ({kind})",
        error_share,
        error_share,
    )
