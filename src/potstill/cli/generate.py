"""`potstill generate`: prompts x roles x samples -> the teacher -> a dataset."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.generate_view import (
    document_of,
    followed,
    pilot_text,
    plan_document,
    plan_text,
    text_of,
)
from potstill.cli.session import Session, with_session
from potstill.errors import BudgetError, MachineError, PartialError, PotstillError, UsageError
from potstill.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from potstill.generate.run import Outcome, Terms


@with_session(
    prompts="generate.prompts",
    roles="generate.roles",
    samples="generate.samples_per_prompt",
    model="teacher.model",
    service="teacher.service",
    rpm="teacher.rpm",
    max_cost="budget.max_usd",
    from_traces="generate.from_traces",
    from_failures="generate.failures.file",
    export="generate.export",
    push="generate.push",
)
def generate(
    session: Session,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the run would cost, and send nothing; no key.")
    ] = False,
    pilot: Annotated[
        int | None,
        typer.Option(
            min=1, help="Pay for N answers spread over the plan and for the steps around them, then show the plan."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="From the ledger alone; nothing is sent.")] = False,
    max_requests: Annotated[int | None, typer.Option(min=1, help="Requests that this run may send at most.")] = None,
    cancel_batches: Annotated[
        bool, typer.Option("--cancel-batches", help="Cancel the batch jobs of earlier runs, and keep what they gave.")
    ] = False,
    json_events: Annotated[
        bool, typer.Option("--json-events", help="One JSON event a line on standard output, for CI.")
    ] = False,
) -> None:
    """Get answers from the teacher and make a dataset of them. The same command again goes on where it stopped."""
    for one, other, both in (
        ("--json", "--json-events", session.as_json and json_events),
        ("--pilot", "--plan", pilot is not None and plan),
        ("--offline", "--pilot", offline and pilot is not None),
        ("--offline", "--cancel-batches", offline and cancel_batches),
    ):
        if both:
            message = f"{one} and {other} contradict each other"
            raise UsageError(message)
    if session.dry_run or plan:
        _show_plan(session, json_events=json_events)
        return
    options = {"offline": offline, "max_requests": max_requests, "pilot": pilot, "cancel_batches": cancel_batches}
    outcome = _run(session, options, json_events=json_events)
    error = _error(outcome)
    if pilot is not None and error is None:
        session.say(pilot_text(outcome))
        _show_plan(session, json_events=json_events)
        return
    document = {**document_of(outcome), "exit_code": error.exit_code if error else 0}
    if json_events:
        session.event("result", document)
    else:
        session.show(document, text_of(session, outcome))
    if error is not None:
        session.complain(error)
        raise typer.Exit(error.exit_code)


def _run(session: Session, options: dict[str, Any], *, json_events: bool) -> Outcome:
    from potstill.generate.run import Terms
    from potstill.generate.run import generate as run_generate
    from potstill.teacher.line import StoppedError

    async def run() -> Outcome:
        with followed(session, events=json_events) as report:
            terms = Terms(report, asyncio.Event(), encode=_encode_of(session), say=session.say, **options)
            _stop_on_signals(session, terms)
            return await run_generate(session.config, session.secrets, session.workspace, terms)

    try:
        outcome = asyncio.run(run())
    except StoppedError as error:  # while prompts were grown, before there was anything to make a dataset of
        raise KeyboardInterrupt from error
    if isinstance(outcome.stopped, StoppedError):
        raise KeyboardInterrupt
    return outcome


def _encode_of(session: Session) -> Callable[[Sequence[str]], Sequence[Sequence[float]]] | None:
    """How failures are told apart, where there are any: by the cache's encoder, by spelling where it cannot read them."""
    if session.config.generate.failures.file is None:
        return None
    from potstill.infer.encoder import HASHING
    from potstill.infer.loading import load_encoder

    def encode(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        try:
            encoder = load_encoder(session.config.cache.encoder, session.workspace.encoders)
            unread = next((why for text in texts if (why := encoder.unreadable(text)) is not None), None)
        except (ImportError, MachineError) as error:
            unread = str(error)
        if unread is not None:
            session.say(f"failures are clustered by spelling: {unread}")
            encoder = load_encoder(HASHING, session.workspace.encoders)
        return encoder.encode(texts)

    return encode


def _stop_on_signals(session: Session, terms: Terms) -> None:
    """The first signal lets what is in flight, and perhaps paid, come in; the second ends at once."""
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        session.say("stopping when what is in flight has come in; once more to stop at once")
        terms.stop.set()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)
        if number is signal.SIGTERM:  # a second one must end the process as the first would have
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)


def _error(outcome: Outcome) -> PotstillError | None:
    """What ended the run early, or that some answers could not be had."""
    if isinstance(outcome.stopped, PotstillError):
        return outcome.stopped
    if not outcome.failed:
        return None
    message = f"{counted(len(outcome.failed), 'answer')} could not be had"
    again = "run the same command again: it asks for just these"
    offline = all(item.reason == "offline" for item in outcome.failed)
    return PartialError(message, hint="run it without --offline: it asks for just these" if offline else again)


def _show_plan(session: Session, *, json_events: bool) -> None:
    """What would be sent, and what it can cost; needs no key, sends and writes nothing."""
    from potstill.generate.forecast import forecast
    from potstill.generate.run import load_plan

    plan = load_plan(session.config)
    found = forecast(plan, session.workspace)
    text = plan_text(session, plan, found)
    document = {
        **plan_document(found),
        "exit_code": BudgetError.exit_code if found.over_budget else 0,
    }
    if json_events:
        session.event("plan", {"dry_run": session.dry_run, **document})
    elif session.dry_run:
        session.show_plan(document, text)
    else:
        session.show({"plan": True, **document}, text)
    if found.over_budget:
        message = f"the run is likely to cost up to ${found.likely_usd:f}, and the budget has ${found.left_usd:f} left"
        session.complain(BudgetError(message, hint="raise budget.max_usd / --max-cost, or ask for less"))
        raise typer.Exit(BudgetError.exit_code)
