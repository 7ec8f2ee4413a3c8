"""`potstill emulator`: a local Gemini for the demo, the tests and a developer's own tries."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated, Any, get_args

import typer

from potstill.cli.session import Session, with_session
from potstill.errors import UsageError
from potstill.records import first_problem

QUOTAS = ("rpm", "tpm", "rpd", "spend_usd")
LENGTHS = ("answer_tokens", "answer_spread", "thinking_tokens", "thinking_spread")
BATCH = ("pending_s", "s", "expiry_s", "partial", "jobs", "tokens")


@with_session()
def emulator(  # noqa: PLR0913, PLR0917  (one option a setting)
    session: Session,
    faq: Annotated[str | None, typer.Option(help="FAQ file, or the name of a shipped one.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any free one.")] = 8018,
    latency_s: Annotated[float, typer.Option(help="Median seconds of an answer.")] = 0.02,
    latency_spread: Annotated[float, typer.Option(help="Standard deviation of the latency's logarithm.")] = 0.3,
    length: Annotated[list[str] | None, typer.Option(help=f"NAME=VALUE: {', '.join(LENGTHS)}. Repeatable.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help=f"NAME=VALUE: {', '.join(QUOTAS)}. Repeatable.")] = None,
    tier: Annotated[str, typer.Option(help="Usage tier in the quotas' names: free, tier1, tier2, tier3.")] = "free",
    minute_s: Annotated[float, typer.Option(help="Seconds that a quota's minute lasts.")] = 60.0,
    day_s: Annotated[float | None, typer.Option(help="Seconds of a quota's day; else to midnight Pacific.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="NAME=SHARE, e.g. http-503=0.1. Repeatable.")] = None,
    stall_s: Annotated[float, typer.Option(help="Seconds that a stalled or slow request takes.")] = 30.0,
    batch: Annotated[list[str] | None, typer.Option(help=f"NAME=VALUE: {', '.join(BATCH)}. Repeatable.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="API key to accept; else any. Repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Draws faults and latencies differently.")] = 0,
    log: Annotated[str | None, typer.Option(help="File for the request log (JSON Lines).")] = None,
) -> None:
    """Answer like Gemini, on this machine. Same protocol, quotas, faults, batches and token counts."""
    from pydantic import ValidationError

    from potstill.teacher.emulator.settings import EmulatorSettings, Fault

    given: dict[str, Any] = {"faq": faq, "host": host, "port": port, "latency_s": latency_s, "minute_s": minute_s}
    given |= {"latency_spread": latency_spread, "day_s": day_s, "stall_s": stall_s, "tier": tier, "seed": seed}
    given |= {"log": log, "keys": tuple(key or ()), "faults": _pairs(fault, "--fault", get_args(Fault))}
    given |= {**_pairs(quota, "--quota", QUOTAS), **_pairs(length, "--length", LENGTHS)}
    given |= {f"batch_{name}": value for name, value in _pairs(batch, "--batch", BATCH).items()}
    try:
        settings = EmulatorSettings.model_validate(given)
    except ValidationError as error:
        raise UsageError(first_problem(error), hint="see `potstill emulator --help`") from error
    if session.dry_run:
        shown = settings.model_dump(mode="json", exclude={"keys"})
        session.show_plan({"emulator": shown}, f"would listen on {host}:{port}")
        return
    asyncio.run(_serve(session, settings))


async def _serve(session: Session, settings: Any) -> None:
    """Serve until SIGTERM (exit code 0) or SIGINT (130)."""
    from potstill.teacher.emulator.serving import listening

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with listening(settings) as (_, url):
        text = f"emulator at {url}\nexport GOOGLE_GEMINI_BASE_URL={url} GEMINI_API_KEY=any-text"
        session.show({"url": url}, text)
        await stop.wait()


def _pairs(given: list[str] | None, option: str, known: tuple[str, ...] = ()) -> dict[str, str]:
    """The NAME=VALUE texts of an option; `known` are the names that it takes, where it says so itself."""
    pairs = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or (known and name not in known):
            message = f"{option} {text!r} is not of the form NAME=VALUE" if not equals else f"{option}: no {name!r}"
            raise UsageError(message, hint=f"one of {', '.join(known)}" if known else None)
        pairs[name] = value
    return pairs
