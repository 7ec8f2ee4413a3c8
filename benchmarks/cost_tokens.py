"""How far is the token formula off? Against a real tokenizer, and against four characters a token, in one run.

python benchmarks/cost_tokens.py TOKENIZER.JSON [FILE ...]

The texts are what any checkout and any Python has: docstrings and sources of the standard library, this project's
pages and data, in English and Traditional Chinese. Further text files are measured paragraph by paragraph.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from tokenizers import Tokenizer

from potstill.pricing.tokens import estimate_tokens

ROOT = Path(__file__).parents[1]
MODULES = ("argparse", "json", "sqlite3", "asyncio", "decimal", "logging", "subprocess", "datetime", "collections")
SHORTEST = 25


def paragraphs(path: Path) -> list[str]:
    """The paragraphs of a text."""
    return [text for text in path.read_text(encoding="utf-8").split("\n\n") if len(text) > SHORTEST]


def docstrings() -> Iterator[str]:
    """What the standard library says about itself."""
    for name in MODULES:
        for thing in vars(importlib.import_module(name)).values():
            text = inspect.getdoc(thing)
            if text and len(text) > SHORTEST and str(getattr(thing, "__module__", "")).startswith(name):
                yield text


def system_prompts(language: str) -> list[str]:
    """The shipped roles' system prompts."""
    roles = sorted((ROOT / "prompts" / "roles").glob("*.yaml"))
    return [yaml.safe_load(path.read_text(encoding="utf-8"))["system"][language] for path in roles]


def texts() -> dict[str, list[str]]:
    """All of them by kind."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    questions = [line for name in ("en", "zh-TW") for line in shipped_questions(name)]
    return {
        "English docstrings": sorted(set(docstrings())),
        "English Markdown": [text for path in pages for text in paragraphs(path)],
        "English system prompts": system_prompts("en"),
        "English questions": [line for line in questions if line.isascii()],
        "zh-TW Markdown": paragraphs(ROOT / "README.zh-TW.md"),
        "zh-TW system prompts": system_prompts("zh-TW"),
        "zh-TW questions": [line for line in questions if not line.isascii()],
        "Python": [path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))],
        "JSON": [
            line for line in (ROOT / "src/potstill/pricing/prices.json").read_text().split("\n") if len(line) > SHORTEST
        ],
    }


def shipped_questions(language: str) -> list[str]:
    """Questions of the shipped tasks in a language."""
    found = sorted((ROOT / "prompts" / "tasks").glob(f"*.{language}.txt"))
    lines = [line.strip() for path in found for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def main() -> None:
    """Print a Markdown table."""
    tokenizer = Tokenizer.from_file(sys.argv[1])
    kinds = {**texts(), **{Path(path).stem: paragraphs(Path(path)) for path in sys.argv[2:]}}
    print(
        "| text | pieces | tokens | characters a token | formula, total | formula, 95 % of pieces | characters/4, total |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind, pieces in kinds.items():
        if not pieces:
            continue
        real = [max(1, len(tokenizer.encode(text, add_special_tokens=False).ids)) for text in pieces]
        ours = [estimate_tokens(text) for text in pieces]
        errors = sorted(abs(mine / true - 1) for mine, true in zip(ours, real, strict=True))
        characters = sum(map(len, pieces))
        print(
            f"| {kind} | {len(pieces)} | {sum(real)} | {characters / sum(real):.2f} | {sum(ours) / sum(real) - 1:+.1%} |"
            f" within {errors[math.ceil(0.95 * len(errors)) - 1]:.0%} | {characters / 4 / sum(real) - 1:+.0%} |"
        )


if __name__ == "__main__":
    main()
