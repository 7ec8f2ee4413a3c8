"""What every command shares: the common options, the resolved config, and how results and errors are shown."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from potstill.config import Config, Resolved, Secrets, flatten, resolve
from potstill.errors import UsageError
from potstill.workspace import Workspace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ConfigKey:
    """Marks an option as the shorthand of one config key."""

    key: str


@dataclass(frozen=True)
class Session:
    """One run of one command."""

    command: str
    resolved: Resolved
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False

    @property
    def config(self) -> Config:
        """The resolved config."""
        return self.resolved.config

    @property
    def secrets(self) -> Secrets:
        """The keys from the environment."""
        return self.resolved.secrets

    @property
    def workspace(self) -> Workspace:
        """The workspace, not yet created."""
        return Workspace(Path(self.config.workspace))

    def show(self, document: Mapping[str, Any], text: str) -> None:
        """Give the result: one JSON document with `--json`, else the text; both on standard output."""
        if self.as_json:
            whole = {"schema_version": SCHEMA_VERSION, "command": self.command, **document}
            sys.stdout.write(json.dumps(whole, ensure_ascii=False, indent=2, default=str) + "\n")
        elif text:
            sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A line of progress or advice on standard error; silent with `--quiet`."""
        if not self.quiet:
            sys.stderr.write(self.secrets.redact(text) + "\n")
            sys.stderr.flush()

    def show_plan(self, document: Mapping[str, Any], text: str) -> None:
        """Answer `--dry-run`: what would happen, then every config value with its origin."""
        values = flatten(self.config)
        origins = self.resolved.origins
        config = {key: {"value": _plain(value), "origin": origins[key]} for key, value in values.items()}
        lines = [f"  {key} = {_plain(value)}  ({origins[key]})" for key, value in values.items()]
        self.show({"dry_run": True, **document, "config": config}, "\n".join([text, "", "config:", *lines]))


COMMON: dict[str, Any] = {
    "config_file": Annotated[
        Path | None, typer.Option("--config", "-c", help="Config file; else potstill.yaml in this folder.")
    ],
    "settings": Annotated[list[str] | None, typer.Option("--set", help="Override: section.key=value. Repeatable.")],
    "workspace": Annotated[
        str | None, typer.Option("--workspace", "-w", help="Folder for everything made."), ConfigKey("workspace")
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="More on standard error.")],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Show config and plan; spend, train, write nothing.")],
}


def with_session(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options. Its first parameter is the Session.

    An option annotated with `ConfigKey` goes into the config and is not passed on, unless the function asks for it by
    a parameter of that name without the mark.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = list(inspect.signature(command).parameters.values())[1:]
    keyed = {p.name: _config_key(hints[p.name]) for p in parameters if _config_key(hints[p.name])}
    keyed["workspace"] = "workspace"

    @functools.wraps(command)
    def run(**given: Any) -> None:
        flags = {
            key: (_flag_name(name), _plain_list(given[name]))
            for name, key in keyed.items()
            if key and given[name] is not None
        }
        session = Session(
            command=command.__name__.replace("_", "-"),
            resolved=resolve(given["config_file"], given["settings"] or (), flags),
            as_json=given["as_json"],
            quiet=given["quiet"],
            verbose=given["verbose"],
            dry_run=given["dry_run"],
        )
        if session.quiet and session.verbose:
            message = "--quiet and --verbose contradict each other"
            raise UsageError(message)
        own = {p.name: given[p.name] for p in parameters}
        command(session, **own)

    own_parameters = [p.replace(annotation=hints[p.name], kind=p.KEYWORD_ONLY) for p in parameters]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_default(hint), annotation=hint)
        for name, hint in COMMON.items()
    ]
    run.__signature__ = inspect.Signature([*own_parameters, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in [*own_parameters, *common]}
    return run


def _config_key(hint: Any) -> str | None:
    if get_origin(hint) is not Annotated:
        return None
    return next((mark.key for mark in get_args(hint)[1:] if isinstance(mark, ConfigKey)), None)


def _default(hint: Any) -> Any:
    return False if get_args(hint)[0] is bool else None


def _flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def _plain_list(value: Any) -> Any:
    """A flag that takes a comma-separated or repeated list gives the config a plain tuple of texts."""
    if isinstance(value, list | tuple):
        return tuple(part.strip() for item in value for part in str(item).split(",") if part.strip())
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
