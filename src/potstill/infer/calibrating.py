"""Calibrating a cache: pairs are encoded, the rule is chosen (see `calibration`), and written and drawn beside the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

from potstill.config import CacheConfig
from potstill.errors import InputError, MachineError
from potstill.files import read_text, write_atomic
from potstill.infer.cache import entries_file, open_encoder
from potstill.infer.calibration import Calibration, Circumstances, Point, calibrate
from potstill.infer.cross import CrossScorer
from potstill.infer.encoder import Encoder
from potstill.infer.pairs import Pair
from potstill.infer.store import EntryStore
from potstill.records import from_json
from potstill.wording import counted
from potstill.workspace import Workspace

CHUNK = 256
"""Questions encoded between two reports of progress."""


@dataclass(frozen=True)
class CalibrationFiles:
    """Where a calibration and its drawing lie: beside the entries."""

    json: Path
    png: Path


def calibration_files(config: CacheConfig, workspace: Workspace) -> CalibrationFiles:
    """The files of a config's cache."""
    folder = entries_file(config, workspace).parent
    return CalibrationFiles(folder / workspace.calibration.name, folder / workspace.calibration_plot.name)


def read_calibration(path: Path) -> Calibration | None:
    """A cache's calibration; None where there is none. Raises InputError for a file that is none."""
    if not path.is_file():
        return None
    return from_json(Calibration, read_text(path, "calibration"), path, hint="calibrate anew, or delete the file")


def run_calibration(
    config: CacheConfig,
    workspace: Workspace,
    pairs: Sequence[Pair],
    source: str,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Calibration:
    """Calibrate on labelled pairs; writes `calibration.json` and `calibration.png`.

    Raises InputError where the encoder reads none of the pairs, MachineError where a package is missing.
    """
    files = calibration_files(config, workspace)
    encoder = open_encoder(config, workspace)
    readable = [
        pair for pair in pairs if encoder.unreadable(pair.question) is None and encoder.unreadable(pair.cached) is None
    ]
    if not readable:
        message = (
            f"{source}: {encoder.id} reads none of the {len(pairs)} pairs: {encoder.unreadable(pairs[0].question)}"
        )
        raise InputError(message, hint="choose a cache.encoder for their language")
    vectors = _encoded(encoder, readable, on_progress)
    cross = CrossScorer(config.cross_encoder) if config.cross_encoder else None
    about = Circumstances(
        encoder.id,
        source,
        config.max_wrong_rate,
        _entries(config, workspace),
        datetime.now(UTC),
        cross_encoder=cross.id if cross else None,
    )
    found = calibrate(
        readable,
        lambda chosen: [_cosine(vectors, pair) for pair in chosen],
        about,
        (lambda chosen: cross.score([(pair.question, pair.cached) for pair in chosen])) if cross else None,
    )
    write_atomic(files.json, found.model_dump_json(indent=1) + "\n")
    write_atomic(files.png, drawing(found))
    return found


def drawing(calibration: Calibration) -> bytes:
    """Wrong share and its bound against the share served, for each signal, as PNG."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "drawing a calibration needs matplotlib"
        raise MachineError(message, hint="pip install 'potstill[local]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for signal, colour in (("cosine", "tab:orange"), ("verifier", "tab:blue"), ("cross_encoder", "tab:green")):
        points = sorted((found for found in calibration.curve if found.signal == signal and found.served), key=_served)
        if points:
            shares = [100 * point.hit_rate for point in points]
            wrong = [100 * point.wrong / point.served for point in points]
            upper = [100 * point.upper for point in points]
            axes.plot(shares, wrong, marker=".", color=colour, label=f"{signal}, with guard: wrong")
            axes.plot(shares, upper, linestyle="--", color=colour, label=f"{signal}, with guard: upper bound")
    axes.axhline(100 * calibration.max_wrong_rate, color="tab:red", linewidth=1, label="cache.max_wrong_rate")
    for point in calibration.curve:
        if (point.signal, point.threshold) == (calibration.signal, calibration.threshold):
            axes.plot(100 * point.hit_rate, 100 * point.upper, marker="o", color="black", label="chosen", linestyle="")
    axes.set_xlabel("pairs served, %")
    axes.set_ylabel("wrong of served, %")
    axes.set_title(f"{calibration.encoder}\n{counted(sum(calibration.pairs.values()), 'pair')}", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    target = BytesIO()
    figure.savefig(target, format="png", dpi=130)
    return target.getvalue()


def _served(point: Point) -> int:
    return point.served


def _entries(config: CacheConfig, workspace: Workspace) -> int:
    path = entries_file(config, workspace)
    if not path.is_file():
        return 0
    with EntryStore(path) as store:
        return store.count()


def _encoded(
    encoder: Encoder, pairs: Sequence[Pair], on_progress: Callable[[int, int], None]
) -> dict[str, tuple[float, ...]]:
    """A vector for each question, encoded once each, like lengths together."""
    questions = sorted({text for pair in pairs for text in (pair.question, pair.cached)}, key=len)
    vectors: dict[str, tuple[float, ...]] = {}
    for start in range(0, len(questions), CHUNK):
        chunk = questions[start : start + CHUNK]
        vectors.update(zip(chunk, encoder.encode(chunk), strict=True))
        on_progress(len(vectors), len(questions))
    return vectors


def _cosine(vectors: dict[str, tuple[float, ...]], pair: Pair) -> float:
    return sum(one * other for one, other in zip(vectors[pair.question], vectors[pair.cached], strict=True))
