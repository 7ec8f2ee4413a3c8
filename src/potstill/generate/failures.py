"""What a student failed at, in clusters of like questions, and how new prompts are shared out among them. Pure but for reading."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import InputError
from potstill.files import read_lines
from potstill.generate.export import read_split
from potstill.records import Evaluated, Sample, content_id, from_json
from potstill.workspace import EVALUATION, Workspace

Vector = Sequence[float]
Encode = Callable[[Sequence[str]], Sequence[Vector]]
"""Texts to vectors of length one."""


@dataclass(frozen=True)
class Failures:
    """Questions that were failed at, each once, and all held-out questions, which no new prompt may repeat."""

    failed: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def id(self) -> str:
        """Names the round: other failures, another round."""
        return content_id({"failed": sorted(self.failed)})


def read_failures(name: str, workspace: Workspace) -> Failures:
    """What stands in a student's evaluation, named by its folder, its verdict or the file itself.

    Raises InputError where there is none, or naming file and line. Held out are also the dataset's questions outside the
    training split, judged or not.
    """
    rows = list(_evaluated(evaluation_file(name)))
    failed = tuple(dict.fromkeys(row.question for row in rows if not row.good))
    held_out = dict.fromkeys(row.question for row in rows)
    for split in ("validation", "test"):
        if workspace.split(split).is_file():
            held_out |= dict.fromkeys(map(_question, read_split(workspace, split)))
    return Failures(failed, tuple(held_out))


def evaluation_file(name: str) -> Path:
    """The evaluation's file beside a verdict, in a student's folder, or named itself."""
    path = Path(name)
    if path.is_dir():
        return path / EVALUATION
    return path.with_name(EVALUATION) if path.name == "verdict.json" else path


def clusters(texts: Sequence[str], vectors: Sequence[Vector], most: int) -> list[list[str]]:
    """Texts in at most so many clusters, the largest first: the centres lie as far apart as can be.

    Farthest-first traversal (Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5), at most twice the best radius.
    """
    nearest = [-1.0] * len(texts)
    owner = [0] * len(texts)
    centre = 0
    for number in range(min(most, len(texts))):
        for place, vector in enumerate(vectors):
            alike = _cosine(vector, vectors[centre])
            if alike > nearest[place]:
                nearest[place], owner[place] = alike, number
        centre = min(range(len(texts)), key=nearest.__getitem__)
        if nearest[centre] > SAME:
            break
    found: dict[int, list[str]] = {}
    for text, number in zip(texts, owner, strict=True):
        found.setdefault(number, []).append(text)
    return sorted(found.values(), key=lambda members: -len(members))


SAME = 0.999
"""Cosine from which two texts are one point."""


def shares(sizes: Sequence[int], total: int) -> list[int]:
    """`total` prompts in proportion to the clusters' sizes, by largest remainder; the largest first where they are few."""
    whole = sum(sizes)
    found = [total * size // whole for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda place: (-(total * sizes[place] % whole), place))
    for place in rest[: total - sum(found)]:
        found[place] += 1
    return found


def _evaluated(path: Path) -> Iterator[Evaluated]:
    hint = f"`potstill distill` writes {EVALUATION} beside verdict.json"
    if not path.is_file():
        message = f"evaluation not found: {path}"
        raise InputError(message, hint=hint)
    for number, line in enumerate(read_lines(path, "evaluation"), start=1):
        yield from_json(Evaluated, line, f"{path}:{number}", hint=hint)


def _question(sample: Sample) -> str:
    return "\n".join(turn.content for turn in sample.messages if turn.role == "user")


def _cosine(left: Vector, right: Vector) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
