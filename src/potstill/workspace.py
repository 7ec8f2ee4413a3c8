"""The only place that knows a file's name: in a workspace, and among the files that potstill ships."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import InputError, MachineError, UsageError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a student, role or adapter may be called, so that a name is never a path."""


def checked_name(name: str, what: str) -> str:
    """Return `name` if it is safe as a file name; raises UsageError otherwise."""
    if not re.fullmatch(NAME_PATTERN, name):
        message = f"{name!r} is no valid {what} name"
        raise UsageError(message, hint="use letters, digits, '.', '_' and '-', at most 64 of them")
    return name


EVALUATION = "evaluation.jsonl"


@dataclass(frozen=True)
class StudentFiles:
    """The files of one student, `students/<name>/`."""

    root: Path

    @property
    def adapter(self) -> Path:
        """The one adapter for all roles (PEFT format)."""
        return self.root / "adapter"

    def role_adapter(self, role: str) -> Path:
        """The adapter of one role, where each role has its own."""
        return self.root / "adapters" / checked_name(role, "role")

    @property
    def checkpoints(self) -> Path:
        """Trainer checkpoints, kept until the run is finished."""
        return self.root / "checkpoints"

    @property
    def effort(self) -> Path:
        """Seconds and joules so far, kept until the run is finished."""
        return self.root / "effort.json"

    @property
    def verdict(self) -> Path:
        """`verdict.json`: how the student compares with the teacher."""
        return self.root / "verdict.json"

    @property
    def questions(self) -> Path:
        """`questions.safetensors`: the training questions as vectors, for the router."""
        return self.root / "questions.safetensors"

    @property
    def evaluation(self) -> Path:
        """`evaluation.jsonl`: each held-out answer beside the teacher's, and whether it is good."""
        return self.root / EVALUATION

    @property
    def report(self) -> Path:
        """`report.html`: the verdict for a reader."""
        return self.root / "report.html"

    @property
    def export(self) -> Path:
        """`export/`: merged weights and Modelfiles, for other programs."""
        return self.root / "export"

    @property
    def earlier(self) -> StudentFiles:
        """`earlier/`: the student that stood here before this one, with its verdict."""
        return StudentFiles(self.root / "earlier")

    @property
    def loss_plot(self) -> Path:
        """`loss.png`: training and validation loss."""
        return self.root / "loss.png"

    @property
    def card(self) -> Path:
        """`README.md`: the model card."""
        return self.root / "README.md"

    @property
    def manifest(self) -> Path:
        """`manifest.json`: what the student was made from."""
        return self.root / "manifest.json"


@dataclass(frozen=True)
class Workspace:
    """A folder with everything that potstill made; see the design's workspace layout."""

    root: Path

    @property
    def ledger(self) -> Path:
        """`ledger.sqlite3`: every attempt at a paid call."""
        return self.root / "ledger.sqlite3"

    @property
    def batches(self) -> Path:
        """`batches/`: input files of batch jobs, until they are uploaded."""
        return self.root / "batches"

    @property
    def dataset(self) -> Path:
        """`dataset/`."""
        return self.root / "dataset"

    def split(self, name: str) -> Path:
        """`dataset/<train|validation|test>.jsonl`."""
        return self.dataset / f"{name}.jsonl"

    @property
    def rejected(self) -> Path:
        """`dataset/rejected.jsonl`: what was sifted out, each with its reason."""
        return self.dataset / "rejected.jsonl"

    @property
    def dataset_card(self) -> Path:
        """`dataset/README.md`."""
        return self.dataset / "README.md"

    @property
    def dataset_manifest(self) -> Path:
        """`dataset/manifest.json`: hashes, config, counts, cost."""
        return self.dataset / "manifest.json"

    @property
    def generating(self) -> Path:
        """`generate.lock`: locked, and always empty, while a run of `generate` pays."""
        return self.root / "generate.lock"

    def export(self, form: str, split: str, suffix: str) -> Path:
        """`dataset/export/<form>/<split>.<suffix>`."""
        return self.dataset / "export" / form / f"{split}.{suffix}"

    @property
    def grown(self) -> Path:
        """`prompts/grown.jsonl`: prompts that the teacher made, each with where it comes from."""
        return self.root / "prompts" / "grown.jsonl"

    @property
    def not_grown(self) -> Path:
        """`prompts/rejected.jsonl`: prompts that the teacher made and that were left out, each with its reason."""
        return self.root / "prompts" / "rejected.jsonl"

    @property
    def failure_rounds(self) -> Path:
        """`prompts/failures/`: prompts near what students failed at, a file for each round."""
        return self.root / "prompts" / "failures"

    def student(self, name: str) -> StudentFiles:
        """The files of the student called `name`; raises UsageError for a name that could be a path."""
        return StudentFiles(self.root / "students" / checked_name(name, "student"))

    @property
    def cache(self) -> Path:
        """`cache/`: answers served before, and their vectors."""
        return self.root / "cache"

    @property
    def cache_entries(self) -> Path:
        """`cache/entries.sqlite3`: the cached answers and the exact layer."""
        return self.cache / "entries.sqlite3"

    @property
    def cache_index(self) -> Path:
        """`cache/qdrant/`: Qdrant's local storage."""
        return self.cache / "qdrant"

    @property
    def encoders(self) -> Path:
        """`cache/encoders/`: the encoders' ONNX graphs, without weights."""
        return self.cache / "encoders"

    @property
    def calibration_plot(self) -> Path:
        """`cache/calibration.png`: wrong hits against hits."""
        return self.cache / "calibration.png"

    @property
    def calibration(self) -> Path:
        """`cache/calibration.json`."""
        return self.cache / "calibration.json"

    @property
    def traces(self) -> Path:
        """`traces/`: one line a query, one file a day (`YYYY-MM-DD.jsonl`)."""
        return self.root / "traces"

    @property
    def request_log(self) -> Path:
        """`serve.jsonl`: the server's request log."""
        return self.root / "serve.jsonl"

    def create(self) -> Workspace:
        """Make the folder; raises MachineError where it cannot be made."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot create the workspace {self.root}: {error.strerror}"
            raise MachineError(message, hint="choose another folder with -w/--workspace") from error
        return self


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` for a library to write to; it takes the place of `path` when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class LineFile:
    """A file that is written line by line beside its place, and put there whole by `publish`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")
        self._digest = hashlib.sha256()
        self.lines = 0

    def write(self, line: str) -> None:
        """Add one line, newline included."""
        data = line.encode("utf-8")
        self._file.write(data)
        self._digest.update(data)
        self.lines += 1

    @property
    def sha256(self) -> str:
        """Hash of what was written, 64 hex digits."""
        return self._digest.hexdigest()

    def publish(self) -> None:
        """Flush to disk and take the file's place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Leave what stood there before; nothing to do after `publish`."""
        with suppress(OSError):  # a full disk, which whoever wrote has heard of
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def read_text(path: Path, what: str) -> str:
    """Read a UTF-8 file; raises InputError naming `what` and the path."""
    with _reading(path, what):
        return path.read_text(encoding="utf-8-sig")


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file; raises InputError naming `what`, the path and the line."""
    try:
        return yaml.safe_load(read_text(path, what))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        message = f"{path}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}"
        raise InputError(message) from error


def file_sha(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(path: Path, what: str) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time; raises InputError naming `what`, the path and the line."""
    with _reading(path, what), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
            except UnicodeDecodeError as error:
                message = f"{path}:{number}: not UTF-8"
                raise InputError(message, hint="save the file as UTF-8") from error


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn what goes wrong with a file into an InputError."""
    try:
        yield
    except FileNotFoundError as error:
        message = f"{what} not found: {path}"
        raise InputError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 (byte {error.start})"
        raise InputError(message, hint="save the file as UTF-8") from error
    except OSError as error:
        message = f"cannot read {what} {path}: {error.strerror}"
        raise InputError(message) from error


def shipped(kind: str) -> Path:
    """The folder of shipped files of one kind: `prompts` or `configs`.

    An installed wheel carries them inside the package; a source checkout at its top.
    """
    packaged = Path(__file__).parent / "shipped" / kind
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / kind
