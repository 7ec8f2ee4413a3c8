"""`potstill serve-local`: the student's roles, and the hybrid router, behind an OpenAI-compatible API."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer

from potstill.cli.session import Session, quiet_libraries, with_session
from potstill.errors import InputError


@with_session(host="serve.host", port="serve.port", name="distill.name")
def serve_local(
    session: Session,
    no_hybrid: Annotated[bool, typer.Option("--no-hybrid", help="Serve the student's roles only.")] = False,
) -> None:
    """Serve the student as an OpenAI-compatible HTTP API, one model a role, and `hybrid` for the router."""
    from potstill.serve.server import check_exposure, listen

    serve = session.config.serve
    check_exposure(serve.host, len(session.secrets.serve_keys))
    files = session.workspace.student(session.config.distill.name)
    if session.dry_run:
        found = files.manifest.is_file()
        text = f"would serve the student in {files.root} on {serve.host}:{serve.port}"
        session.show_plan({"host": serve.host, "port": serve.port, "student_found": found}, text)
        return
    if not files.manifest.is_file():
        message = f"there is no student in {files.root}"
        raise InputError(message, hint="train one: `potstill distill`")
    with listen(serve.host, serve.port) as listener:
        if asyncio.run(_serve(session, listener, hybrid=not no_hybrid)):
            raise KeyboardInterrupt


async def _serve(session: Session, listener: socket.socket, *, hybrid: bool) -> bool:
    from potstill.serve.app import create_app
    from potstill.serve.batching import SharedStudent
    from potstill.serve.server import run, url_of
    from potstill.student.local import load_student

    quiet_libraries()
    config, secrets, workspace = session.config, session.secrets, session.workspace
    student = SharedStudent(load_student(workspace.student(config.distill.name), config.student))
    url = url_of(listener)
    async with AsyncExitStack() as stack:
        router: Any = None
        if hybrid:
            from potstill.infer.router import open_router

            router = await stack.enter_async_context(open_router(config, secrets, workspace, student))
        keys = [key.get_secret_value() for key in secrets.serve_keys]
        app = create_app(student, config.serve, log_file=workspace.request_log, keys=keys, router=router)
        models = [*student.roles, *(["hybrid"] if hybrid else [])]
        document = {"url": url, "base_url": f"{url}/v1", "models": models}
        text = f"serving at {url}\nmodels: {', '.join(models)}"
        return await run(app, config.serve, listener, lambda: session.show(document, text))
