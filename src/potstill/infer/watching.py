"""A long-running router follows what is on disk: a new calibration or verdict is in force from the next question on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from potstill.config import Config
from potstill.infer.calibrating import calibration_files, read_calibration
from potstill.infer.settings import Settings, make_settings
from potstill.student.answers import Student
from potstill.workspace import Workspace

Stamp = tuple[int, int] | None


class Watch:
    """Looks whether calibration or verdict has changed: two file stamps a question."""

    def __init__(self, config: Config, workspace: Workspace, student: Student | None) -> None:
        files = workspace.student(config.distill.name)
        self._calibration = calibration_files(config.cache, workspace).json
        self._verdict, self._manifest = files.verdict, files.manifest
        self._make: Callable[[], Settings] = lambda: make_settings(config, workspace, student)
        self._seen = self._stamps()
        self._trained = _stamp(self._manifest)

    def look(self, settings: Settings) -> Settings | None:
        """The settings from now on, where something has changed; None where nothing has. Raises InputError for a bad file.

        A verdict on a student that was trained anew is not this router's: the student in its memory is another one.
        """
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        if _stamp(self._manifest) != self._trained:
            return replace(settings, calibration=read_calibration(self._calibration))
        return self._make()

    def _stamps(self) -> tuple[Stamp, Stamp]:
        return _stamp(self._calibration), _stamp(self._verdict)


def _stamp(path: Path) -> Stamp:
    """When a file was last written, and its size; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
