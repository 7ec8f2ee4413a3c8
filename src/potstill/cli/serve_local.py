"""`potstill serve-local`: the student's roles, and the hybrid router, behind an OpenAI-compatible API."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.session import Session, quiet_libraries, with_session
from potstill.errors import InputError, MachineError, UsageError
from potstill.workspace import Workspace


@with_session(host="serve.host", port="serve.port", name="distill.name", engine="serve.engine")
def serve_local(
    session: Session,
    no_hybrid: Annotated[bool, typer.Option("--no-hybrid", help="Serve the student's roles only.")] = False,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="With another engine: show the lines that start it, and end.")
    ] = False,
) -> None:
    """Serve the student as an OpenAI-compatible HTTP API. One model a role, `all`, and `hybrid` for the router."""
    from potstill.serve.server import check_exposure, listen

    serve, secrets = session.config.serve, session.secrets
    check_exposure(serve.host, len(secrets.serve_keys) + len(secrets.serve_admin_keys))
    files = session.workspace.student(session.config.distill.name)
    if session.dry_run:
        found = files.manifest.is_file()
        text = f"would serve the student in {files.root} on {serve.host}:{serve.port} with {serve.engine}"
        session.show_plan({"host": serve.host, "port": serve.port, "student_found": found}, text)
        return
    if not files.manifest.is_file():
        message = f"there is no student in {files.root}"
        raise InputError(message, hint="train one: `potstill distill`")
    if serve.engine == "vllm":
        _vllm(session, only_print=print_command)
        return
    if serve.engine != "transformers":
        _exported(session, files.export, only_print=print_command)
        return
    if print_command:
        message = "--print-command needs another --engine: the one in this process is started by no other command"
        raise UsageError(message)
    with listen(serve.host, serve.port) as listener:
        if asyncio.run(_serve(session, listener, hybrid=not no_hybrid)):
            raise KeyboardInterrupt


def _vllm(session: Session, *, only_print: bool) -> None:
    """Show the line that starts vLLM, or become it."""
    from potstill.files import read_text
    from potstill.serve.vllm import KEY_VARIABLE, adapter_rank, base_context, systems_of, vllm_command
    from potstill.student.manifest import adapter_folders, read_manifest

    config, keys = session.config, session.secrets.serve_keys
    files = session.workspace.student(config.distill.name)
    manifest = read_manifest(files)
    folders = adapter_folders(files, manifest.adapters, manifest.roles)
    ranks = [adapter_rank(read_text(folder / "adapter_config.json", "adapter")) for folder in folders.values()]
    student = config.student.model_copy(update={"revision": manifest.revision})
    shape = Path(manifest.base) / "config.json"
    context = base_context(read_text(shape, "base")) if shape.is_file() else None
    command = vllm_command(student, config.serve, manifest.base, folders, max(ranks), context)
    if only_print:
        session.show({"command": command, "systems": systems_of(manifest)}, shlex.join(command))
        return
    if len(keys) > 1:
        message = "vLLM takes one API key, and POTSTILL_SERVE_API_KEYS holds several"
        raise UsageError(message, hint="give it one, or put a proxy before vLLM")
    if keys:
        os.putenv(KEY_VARIABLE, keys[0].get_secret_value())
    session.say("vLLM adds no system prompts: requests must bring their role's (see --print-command --json)")
    if student.quantization == "nf4":
        session.say("vLLM reads nf4 through a plugin since 0.32: pip install vllm-bnb-plugin beside it")
    try:
        os.execvp(command[0], command)  # noqa: S606  (a fixed program; its arguments reach no shell)
    except OSError as error:
        message = f"cannot start vllm: {error.strerror}"
        raise MachineError(message, hint="pip install vllm, in an environment of its own if need be") from error


def _exported(session: Session, export: Path, *, only_print: bool) -> None:
    """Show the lines for a program that runs apart."""
    from potstill.serve.exported import export_commands

    engine = session.config.serve.engine
    commands = export_commands(export, session.config.serve)
    if not only_print:
        message = f"{engine} runs apart from potstill"
        raise UsageError(message, hint="--print-command shows the lines; then set infer.student_url")
    session.show({"commands": commands}, "\n".join(map(shlex.join, commands)))


async def _serve(session: Session, listener: socket.socket, *, hybrid: bool) -> bool:
    from potstill.serve.access import Keys
    from potstill.serve.app import Parts, create_app
    from potstill.serve.server import run, url_of
    from potstill.serve.wire import check_names
    from potstill.student.local import load_student

    quiet_libraries(session)
    config, secrets, workspace = session.config, session.secrets, session.workspace
    student = load_student(workspace.student(config.distill.name), config.student, session.say)
    check_names(student.roles, config.cache.encoder)
    if hybrid:
        _check_writable(workspace)
        _check_router(session, student)
    keys = Keys(
        tuple(key.get_secret_value() for key in secrets.serve_keys),
        tuple(key.get_secret_value() for key in secrets.serve_admin_keys),
    )
    parts = Parts(keys, _router_of(session) if hybrid else None, _encoder_of(session), _reader_of(session, student))
    app = create_app(student, config.serve, log_file=workspace.request_log, parts=parts)
    url = url_of(listener)
    models = [*student.roles, "all", *(["hybrid"] if hybrid else [])]
    document = {"url": url, "base_url": f"{url}/v1", "models": models}
    text = f"serving at {url}\nmodels: {', '.join(models)}"
    return await run(app, config.serve, listener, lambda: session.show(document, text))


def _check_writable(workspace: Workspace) -> None:
    """A router that cannot keep its ledger fails every question; raises MachineError before any is taken."""
    try:
        workspace.request_log.open("ab").close()
    except OSError as error:
        message = f"the workspace {workspace.root} cannot be written: {error.strerror}"
        hint = "hybrid keeps its ledger and cache there; --no-hybrid serves the roles alone"
        raise MachineError(message, hint=hint) from error


def _check_router(session: Session, student: Any) -> None:
    """What the router could not start with is told before anything listens; raises InputError, such as for a role of which neither file nor training is known."""
    from potstill.infer.settings import make_settings

    try:
        make_settings(session.config, session.workspace, student)
    except InputError as error:
        message = f"hybrid: {error.message}"
        raise InputError(message, hint="name its file in generate.roles; --no-hybrid serves the roles alone") from error


def _router_of(session: Session) -> Callable[[Any], Any]:
    """Makes the router over the student that is served."""

    def over(student: Any) -> Any:
        from potstill.infer.router import open_router

        return lambda: open_router(session.config, session.secrets, session.workspace, student)

    return over


def _encoder_of(session: Session) -> tuple[str, Callable[[list[str]], list[tuple[float, ...]]]]:
    """The cache's encoder, loaded when it is first asked."""
    from potstill.infer.encoder import Encoder
    from potstill.infer.loading import load_encoder

    name = session.config.cache.encoder
    opened: list[Encoder] = []
    opening = threading.Lock()

    def encode(texts: list[str]) -> list[tuple[float, ...]]:
        with opening:  # each request asks in a thread of its own
            if not opened:
                opened.append(load_encoder(name, session.workspace.encoders))
        (encoder,) = opened
        for place, text in enumerate(texts):
            if (reason := encoder.unreadable(text)) is not None:
                message = f"input {place}: {reason}"
                raise InputError(message)
        return encoder.encode(texts)

    return name, encode


def _reader_of(session: Session, student: Any) -> Callable[[str], Callable[[Any], None]]:
    """Reads another student of this workspace, of the same base, to be served in place of roles of the same names."""
    from potstill.serve.wire import check_names
    from potstill.student.local import LocalStudent, read_student

    def read(name: str) -> Callable[[LocalStudent], None]:
        loaded = read_student(session.workspace.student(name))
        check_names((role.name for role in loaded.manifest.roles), session.config.cache.encoder)
        if loaded.manifest.base_sha != student.base_sha:
            message = f"the student {name!r} stands on another base than the one that is served"
            raise InputError(message, hint="start another server for it")
        return lambda served: served.take(loaded)

    return read
