"""Which known question is nearest, and what this persona answers to it. Pure but for reading the file."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from math import log
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from potstill.errors import InputError
from potstill.files import read_yaml
from potstill.records import from_data
from potstill.workspace import shipped

FLOOR = 0.25
"""Cosine below which a question is taken to be about something else."""
REMEMBERED = 50_000
"""Questions whose topic is kept."""


class Item(BaseModel):
    """One topic: ways to ask for it, and the answer of each persona."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    questions: tuple[str, ...]
    answers: dict[str, str]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    language: str
    personas: dict[str, str]
    items: tuple[Item, ...]


class Faq:
    """Questions as weighted bags of words; the nearest is the one with the largest cosine (TF-IDF)."""

    def __init__(self, items: tuple[Item, ...], personas: dict[str, str]) -> None:
        self._personas = personas
        rows = [(item, Counter(features(question))) for item in items for question in item.questions]
        seen = Counter(word for _, bag in rows for word in bag)
        self._items = [item for item, _ in rows]
        self._weights = {word: log(1 + len(rows) / count) for word, count in seen.items()}
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for number, (_, bag) in enumerate(rows):
            for word, weight in self._vector(bag).items():
                self._postings.setdefault(word, []).append((number, weight))
        self._remembered: dict[str, Item | None] = {}

    def nearest(self, question: str) -> Item | None:
        """The topic of the nearest known question; None where nothing is near. Looked up once for each question."""
        if question not in self._remembered:
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[question] = self._nearest(question)
        return self._remembered[question]

    def _nearest(self, question: str) -> Item | None:
        scores: dict[int, float] = {}
        for word, asked in self._vector(Counter(features(question))).items():
            for number, weight in self._postings.get(word, ()):
                scores[number] = scores.get(number, 0.0) + asked * weight
        best = max(scores, key=lambda number: (scores[number], -number), default=None)
        return self._items[best] if best is not None and scores[best] >= FLOOR else None

    def answer(self, item: Item, system: str) -> str:
        """The answer of the persona whose phrase stands in the system prompt."""
        persona = next((name for name, phrase in self._personas.items() if phrase in system), "default")
        return item.answers.get(persona) or item.answers["default"]

    def others(self, shown: Sequence[str], count: int, seed: str) -> tuple[str, ...]:
        """Other questions of the topics of some questions, in an order that the seed decides."""
        topics = {item.id: item for item in map(self.nearest, shown) if item is not None}
        known = sorted({question for item in topics.values() for question in item.questions} - set(shown))
        random.Random(seed).shuffle(known)  # noqa: S311  (reproducible, nothing secret)
        return tuple(known[:count])

    def _vector(self, bag: Counter[str]) -> dict[str, float]:
        raw = {word: count * self._weights.get(word, 0.0) for word, count in bag.items()}
        norm = sum(value * value for value in raw.values()) ** 0.5
        return {word: value / norm for word, value in raw.items()} if norm else {}


def features(text: str) -> list[str]:
    """Words, their four-letter beginnings (so that inflections meet), and each Chinese character by itself."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [*words, *(f"{word[:4]}*" for word in words if len(word) > 4), *re.findall(r"[㐀-鿿]", text)]  # noqa: PLR2004


def load_faq(name: str) -> Faq:
    """A FAQ by file or by shipped name; raises InputError naming file and field."""
    path = Path(name)
    if not path.is_file():
        path = shipped("prompts") / "faq" / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        message = f"FAQ file not found: {name}"
        names = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(message, hint=f"a file, or one of the shipped: {names}")
    data = from_data(_File, read_yaml(path, "FAQ file"), path)
    missing = [item.id for item in data.items if "default" not in item.answers]
    if missing:
        message = f"{path}: items without a default answer: {', '.join(missing)}"
        raise InputError(message)
    return Faq(data.items, data.personas)
