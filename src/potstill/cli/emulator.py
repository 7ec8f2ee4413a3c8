"""`potstill emulator`: a local Gemini for the demo, the tests and a developer's own tries."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated, Any

import typer

from potstill.cli.session import Session, with_session
from potstill.errors import UsageError


@with_session()
def emulator(  # noqa: PLR0913, PLR0917  (one option a setting)
    session: Session,
    faq: Annotated[str | None, typer.Option(help="FAQ file, or the name of a shipped one.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 8018,
    latency_s: Annotated[float, typer.Option(help="Median seconds of an answer.")] = 0.02,
    quota: Annotated[list[str] | None, typer.Option(help="rpm=N, tpm=N or rpd=N. Repeatable.")] = None,
    minute_s: Annotated[float, typer.Option(help="Seconds that a quota's minute lasts.")] = 60.0,
    fault: Annotated[list[str] | None, typer.Option(help="NAME=SHARE, e.g. http-503=0.1. Repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Draws faults and latencies differently.")] = 0,
    log: Annotated[str | None, typer.Option(help="File for the request log (JSON Lines).")] = None,
) -> None:
    """Answer like Gemini, on this machine: same protocol, quotas, faults and token counts; no key is checked."""
    from pydantic import ValidationError

    from potstill.teacher.emulator.settings import EmulatorSettings

    given: dict[str, Any] = {"faq": faq, "host": host, "port": port, "latency_s": latency_s, "minute_s": minute_s}
    given |= {"seed": seed, "log": log, "faults": _pairs(fault, "--fault"), **_pairs(quota, "--quota")}
    try:
        settings = EmulatorSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise UsageError(message, hint="see `potstill emulator --help`") from error
    if session.dry_run:
        session.show_plan({"emulator": settings.model_dump(mode="json")}, f"would listen on {host}:{port}")
        return
    asyncio.run(_serve(session, settings))


async def _serve(session: Session, settings: Any) -> None:
    """Serve until SIGTERM (exit code 0) or SIGINT (130)."""
    from potstill.teacher.emulator.server import listening

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with listening(settings) as (_, url):
        text = f"emulator at {url}\nexport GOOGLE_GEMINI_BASE_URL={url} GEMINI_API_KEY=any-text"
        session.show({"url": url}, text)
        await stop.wait()


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals:
            message = f"{option} {text!r} is not of the form NAME=VALUE"
            raise UsageError(message)
        pairs[name] = value
    return pairs
