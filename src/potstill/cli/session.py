"""What every command shares: the common options, the resolved config, and how results and errors are shown."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TextIO, get_args, get_type_hints

import typer

from potstill.config import Config, Resolved, Secrets, field_of, flatten, parse_yaml, resolve
from potstill.errors import PotstillError, UsageError
from potstill.teacher.presets import with_preset
from potstill.wording import visible
from potstill.workspace import Workspace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Session:
    """One run of one command."""

    command: str
    resolved: Resolved
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    dry_run: bool = False
    settings: tuple[str, ...] = ()
    """The `--set` texts, for a command that reads further configs."""

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

    def event(self, name: str, document: Mapping[str, Any]) -> None:
        """One JSON event, on a line of its own on standard output."""
        row = {"event": name, "at": datetime.now(UTC).isoformat(), **document}
        sys.stdout.write(self.secrets.redact(json.dumps(row, ensure_ascii=False, default=str)) + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """A line of progress or advice on standard error; silent with `--quiet`."""
        if not self.quiet:
            sys.stderr.write(visible(self.secrets.redact(text)) + "\n")
            sys.stderr.flush()

    def complain(self, error: PotstillError) -> None:
        """Say on standard error what went wrong and what to do, after the result was shown."""
        lines = [f"potstill: {error.message}", *([f"  hint: {error.hint}"] if error.hint else [])]
        sys.stderr.write(visible(self.secrets.redact("\n".join(lines))) + "\n")

    def explain(self) -> None:
        """Say for --verbose which workspace, key and values are used, and where each value comes from."""
        self.say(f"workspace: {self.workspace.root.absolute()}")
        self.say(f"key: {self.secrets.teacher_key_variable or 'none'}")
        for key, value in flatten(self.config).items():
            if (origin := self.resolved.origins[key]) != "default":
                self.say(f"{key} = {_plain(value)}  ({origin})")

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
    "workspace": Annotated[str | None, typer.Option("--workspace", "-w", help="Folder for everything made.")],
    "as_json": Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")],
    "verbose": Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Say which values are used and from where; show the libraries' notices and the cause of an error.",
        ),
    ],
    "dry_run": Annotated[bool, typer.Option("--dry-run", help="Show config and plan; spend, train, write nothing.")],
}


def colour_wanted(stream: TextIO) -> bool:
    """Whether to paint what goes to this stream: a terminal, and no NO_COLOR in the environment (no-color.org)."""
    from rich.console import Console

    console = Console(file=stream)
    return console.is_terminal and not console.no_color


def quiet_libraries(session: Session) -> None:
    """Keep the model libraries' bars and notices off the terminal, but for --verbose. Loads transformers."""
    if session.verbose:
        return
    import logging

    from transformers.utils.logging import disable_progress_bar

    for name in ("transformers", "huggingface_hub"):  # the hub says each of its retries; the error says it once
        logging.getLogger(name).setLevel(logging.ERROR)
    disable_progress_bar()


Command = Callable[..., None]


def with_session(**shorthands: str) -> Callable[[Command], Command]:
    """Give a command the common options, and flags that are shorthands of config keys.

    `@with_session(max_cost="budget.max_usd")` adds `--max-cost`, which sets `budget.max_usd`; its help is the field's
    own description. A key that holds a list takes the flag several times, or commas. The command's first parameter is
    the Session; its other parameters are ordinary Typer options.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(command).parameters.values())[1:]
        ]
        keys = {**shorthands, "workspace": "workspace"}
        flags = [_parameter(name, _flag_hint(key)) for name, key in shorthands.items()]
        common = [_parameter(name, hint) for name, hint in COMMON.items()]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            session = _session(command.__name__.replace("_", "-"), given, keys)
            if session.verbose:
                session.explain()
            command(session, **{parameter.name: given[parameter.name] for parameter in own})

        run.__signature__ = inspect.Signature([*own, *flags, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *flags, *common]}
        return run

    return decorate


def _session(command: str, given: Mapping[str, Any], keys: Mapping[str, str]) -> Session:
    if given["quiet"] and given["verbose"]:
        message = "--quiet and --verbose contradict each other"
        raise UsageError(message)
    flags = {
        key: (flag := "--" + name.replace("_", "-"), _plain_value(key, given[name], flag))
        for name, key in keys.items()
        if given[name] is not None and given[name] is not False
    }
    return Session(
        command=command,
        resolved=with_preset(resolve(given["config_file"], given["settings"] or (), flags)),
        as_json=given["as_json"],
        quiet=given["quiet"],
        verbose=given["verbose"],
        dry_run=given["dry_run"],
        settings=tuple(given["settings"] or ()),
    )


def _parameter(name: str, hint: Any) -> inspect.Parameter:
    default = False if get_args(hint)[0] is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _flag_hint(key: str) -> Any:
    field = field_of(key)
    option = typer.Option(help=f"{field.description} [{key}]")
    if field.annotation is bool:
        return Annotated[bool, option]
    return Annotated[list[str] | None, option] if isinstance(field.default, tuple) else Annotated[str | None, option]


def _plain_value(key: str, value: Any, flag: str) -> Any:
    """What a flag gives the config: a list's parts, a number or null as YAML reads it, any other text as it is."""
    if isinstance(value, list):
        return tuple(part.strip() for item in value for part in item.split(",") if part.strip())
    if isinstance(value, str) and field_of(key).annotation is not str:
        return parse_yaml(value, flag)
    return value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
