"""The only place that knows a file's name: in a workspace, and among the files that potstill ships."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import MachineError, UsageError

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

    @property
    def adapters(self) -> Path:
        """The adapters, a folder each, where each role has its own."""
        return self.root / "adapters"

    def role_adapter(self, role: str) -> Path:
        """The adapter of one role, where each role has its own."""
        return self.adapters / checked_name(role, "role")

    @property
    def checkpoints(self) -> Path:
        """Trainer checkpoints, kept until the run is finished."""
        return self.root / "checkpoints"

    @property
    def trained(self) -> StudentFiles:
        """Adapters that are trained, and wait here until all are. No role, and so no checkpoint, is called like this."""
        return StudentFiles(self.checkpoints / ".trained")

    @property
    def effort(self) -> Path:
        """Seconds and joules so far, kept until the run is finished."""
        return self.root / "effort.json"

    @property
    def distilling(self) -> Path:
        """`.distill.lock`: locked, and always empty, while a run of `distill` is at work on this student."""
        return self.root / ".distill.lock"

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

    @property
    def stamp(self) -> Path:
        """`.hashes.json`: the adapters' hashes, and what the file system said of them then. May be deleted."""
        return self.root / ".hashes.json"


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


def shipped(kind: str) -> Path:
    """The folder of shipped files of one kind: `prompts` or `configs`.

    An installed wheel carries them inside the package; a source checkout at its top.
    """
    packaged = Path(__file__).parent / "shipped" / kind
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / kind
