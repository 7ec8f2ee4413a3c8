"""The finished dataset in other forms and in other places, as the config asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from potstill.config import Config, ExportFormat, Secrets
from potstill.errors import PotstillError
from potstill.generate.export import export
from potstill.generate.hub import push
from potstill.workspace import Workspace


@dataclass(frozen=True)
class Published:
    """Files that were written, where the dataset was pushed to, and what went wrong, if anything."""

    files: tuple[Path, ...] = ()
    url: str | None = None
    error: PotstillError | None = None


def publish(config: Config, secrets: Secrets, workspace: Workspace) -> Published:
    """Export and push; an error ends it and is given back, because the dataset itself is done.

    A form that an earlier run wrote is written anew, so that none is of another dataset.
    """
    generate = config.generate
    files: list[Path] = []
    try:
        here = [form for form in get_args(ExportFormat) if workspace.export(form, "train", "").parent.is_dir()]
        for form in dict.fromkeys([*generate.export, *here]):
            files += export(workspace, form)
        url = push(workspace, generate.push, secrets.hub_token) if generate.push else None
    except PotstillError as error:
        return Published(tuple(files), None, error)
    return Published(tuple(files), url)
