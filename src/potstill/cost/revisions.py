"""A config as it stands in a file, or as it stood in a git revision together with the files that it names."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.config import Config, resolve, with_values
from potstill.errors import InputError, MachineError


@dataclass(frozen=True)
class Version:
    """A config and what to call it."""

    name: str
    config: Config


def load_version(spec: str, settings: Sequence[str], folder: Path) -> Version:
    """Load `FILE` or `REVISION:FILE`; the files of a revision are written under `folder`.

    The environment takes no part, so that two versions differ by their files alone; `--set` holds for both. Raises
    InputError for a revision or file that is not there, MachineError without git.
    """
    revision, colon, path = spec.rpartition(":")
    if Path(spec).is_file() or not colon or len(revision) <= 1:  # one letter: a drive
        return Version(spec, resolve(Path(spec), settings, environ={}).config)
    commit = _commit(revision)
    file = _save(commit, path, folder / "config")
    if file is None:
        message = f"{path} is not in revision {revision}"
        raise InputError(message, hint="name the file from this folder on, e.g. main:configs/demo.yaml")
    config = resolve(file, settings, environ={}).config
    return Version(spec, _with_files_of(config, commit, revision, folder))


def _with_files_of(config: Config, commit: str, revision: str, folder: Path) -> Config:
    """The config with its prompt, role and price files as they stood then; shipped names stay."""

    def then(names: Sequence[str], kind: str) -> tuple[str, ...]:
        return tuple(_then(name, commit, revision, folder / kind / str(number)) for number, name in enumerate(names))

    changes: dict[str, dict[str, object]] = {
        "generate": {
            "prompts": then(config.generate.prompts, "prompts"),
            "roles": then(config.generate.roles, "roles"),
        }
    }
    if config.prices.file is not None:
        changes["prices"] = {"file": then([config.prices.file], "prices")[0]}
    return with_values(config, **changes)


def _then(name: str, commit: str, revision: str, folder: Path) -> str:
    saved = None if Path(name).is_absolute() else _save(commit, name, folder)
    if saved is not None:
        return str(saved)
    if Path(name).is_file() and not Path(name).is_absolute():
        message = f"{name} is in the folder, but not in revision {revision}"
        raise InputError(message, hint="commit it, or compare two files")
    return name


def _save(commit: str, path: str, folder: Path) -> Path | None:
    """Write a file of a commit under its own name; None where it has none."""
    done = _git("show", f"{commit}:./{path}")
    if done.returncode:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / Path(path).name
    file.write_bytes(done.stdout)
    return file


def _commit(revision: str) -> str:
    done = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        message = f"there is no file and no revision {revision!r} here"
        raise InputError(message, hint="in a CI job, check out with fetch-depth: 0")
    return done.stdout.decode().strip()


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=False)  # noqa: S603, S607  (git of the PATH)
    except FileNotFoundError as error:
        message = "git is not installed"
        raise MachineError(message, hint="compare two files instead") from error
