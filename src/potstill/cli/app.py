"""The `potstill` command: its sub-commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import errno
import json
import sys
import traceback
import warnings
from datetime import UTC, datetime
from typing import Literal

import typer

from potstill import __version__
from potstill.cli.cost import cost_app
from potstill.cli.distill import distill
from potstill.cli.doctor import doctor
from potstill.cli.emulator import emulator
from potstill.cli.generate import generate
from potstill.cli.infer import infer
from potstill.cli.init import init
from potstill.cli.serve_local import serve_local
from potstill.config import read_secrets
from potstill.errors import MachineError, PotstillError, UsageError
from potstill.wording import visible

Form = Literal["text", "json", "events"]
"""How an error is told on standard output: not at all, as one document, as one line."""
INTERRUPTED = 130
STOPPED = "interrupted; what was finished is saved, the same command goes on from here"
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR}
"""What a disk says that is full, or closed to us, or has a file where a folder belongs: wherever it comes up, no bug of ours."""
WRITERS = (*(f"(os error {code})" for code in DISK), "inline_container", "PytorchStreamWriter")
"""The same from safetensors and torch, whose writers raise errors of their own."""

app = typer.Typer(
    name="potstill",
    help="Distil a hosted model into a small model of your own, and answer at the lowest cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command(name="init")(init)
app.command(name="generate")(generate)
app.command(name="distill")(distill)
app.command(name="serve-local")(serve_local)
app.command(name="infer")(infer)
app.add_typer(cost_app, name="cost")
app.command(name="doctor")(doctor)
app.command(name="emulator")(emulator)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"potstill {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Distil a hosted model into a small model of your own, and answer at the lowest cost."""


def main() -> None:
    """Run the command line; every expected failure ends in its exit code, a bug in 1, an interrupt in 130."""
    given = set(sys.argv[1:])
    form: Form = "events" if "--json-events" in given else "json" if "--json" in given else "text"
    verbose = bool({"-v", "--verbose"} & given)
    if not verbose:
        # A library that deprecates another library's call is no news for whoever runs a command; tests do see it.
        warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            sys.stderr.write(f"{STOPPED}\n")
            if form == "events":
                _event({"schema_version": 1, "error": STOPPED, "hint": None, "exit_code": code})
    except PotstillError as error:
        code = _report(error, form, verbose=verbose)
    except typer.Abort:
        code = INTERRUPTED
    except SystemExit:  # what typer makes of a reader that goes away (`potstill ... | head`): no error of ours
        code = 0
    except typer.TyperException as error:  # a usage error of the command line itself
        code = _misused(error.format_message(), form)
    except Exception as error:  # noqa: BLE001  the one broad net: a bug keeps its traceback, without secrets
        lacking = _disk(error) or _missing_package(error)
        code = _bug() if lacking is None else _report(lacking, form, verbose=verbose)
    sys.exit(code or 0)


def _misused(message: str, form: Form) -> int:
    """What the command line itself does not understand; the bare command shows its help."""
    if message.startswith("Usage:"):
        sys.stderr.write(f"{message}\n")
        return UsageError.exit_code
    early = (
        "options stand behind the command, e.g. `potstill generate -c FILE`" if sys.argv[1].startswith("-") else None
    )
    return _report(UsageError(message, hint=early), form, verbose=False)


def _disk(error: Exception) -> MachineError | None:
    if isinstance(error, OSError) and error.errno in DISK:
        message = ": ".join((*filter(None, [error.filename]), error.strerror or "no room"))
    elif type(error).__name__ in {"SafetensorError", "RuntimeError"} and any(mark in str(error) for mark in WRITERS):
        message = f"weights could not be written: {str(error).splitlines()[0]}"
    else:
        return None
    return MachineError(message, hint="is the disk full, the folder read-only, or a file in a folder's place?")


def _missing_package(error: Exception) -> MachineError | None:
    """What the core is installed without, and this command needs: an extra brings it."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None or error.name.startswith("potstill"):
        return None
    message = f"this needs the package {error.name.partition('.')[0]}, which is not installed"
    return MachineError(message, hint="pip install 'potstill[local]'")


def _bug() -> int:
    sys.stderr.write(read_secrets().redact(traceback.format_exc()))
    sys.stderr.write("this is a bug in potstill; please report it with the lines above\n")
    return 1


def _report(error: PotstillError, form: Form, *, verbose: bool) -> int:
    secrets = read_secrets()
    message = secrets.redact(error.message)
    sys.stderr.write(visible(f"potstill: {message}\n"))
    hint = None if error.hint is None else secrets.redact(error.hint)
    if hint:
        sys.stderr.write(visible(f"  hint: {hint}\n"))
    if verbose and error.__cause__ is not None:
        cause = f"{type(error.__cause__).__name__}: {error.__cause__}"
        sys.stderr.write(visible(f"  cause: {secrets.redact(cause)}\n"))
    document = {"schema_version": 1, "error": message, "hint": hint, "exit_code": error.exit_code}
    if form == "events":
        _event(document)
    elif form == "json":
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")
    return error.exit_code


def _event(document: dict[str, object]) -> None:
    """What ended a run, as the last of its events."""
    event = {"event": "error", "at": datetime.now(UTC).isoformat(), **document}
    sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
