"""`potstill infer`: one question, a file of them, standard input or a chat, through the hybrid router."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from potstill.cli.infer_batch import Wanted, answer_many
from potstill.cli.infer_chat import hold_chat
from potstill.cli.infer_router import plan, router_of
from potstill.cli.infer_screen import Screen, on_screen, tell
from potstill.cli.session import Session, with_session
from potstill.errors import InputError, UsageError
from potstill.files import check_target, check_text
from potstill.prompts import read_prompt_file


@with_session(
    threshold="cache.threshold",
    namespace="cache.namespace",
    decide="infer.decide",
    decision="infer.decision",
    roles="infer.roles",
    student_url="infer.student_url",
    model="teacher.model",
    max_cost="budget.max_usd",
)
def infer(  # noqa: PLR0913  (each is a flag)
    session: Session,
    question: Annotated[
        str | None, typer.Argument(help="The question; else --batch, --chat or standard input.")
    ] = None,
    *,
    batch: Annotated[str | None, typer.Option(help="A file of questions: .txt (one a line), .jsonl, .yaml.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="A chat: each line a turn, earlier turns are remembered.")
    ] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Answers of a batch as JSON Lines.")] = False,
    output: Annotated[
        Path | None, typer.Option(help="With --batch: answers as JSON Lines, in order; the same command goes on.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show the whole trace of each question.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Show what the cache holds.")] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="PAIRS", help="Set when a near question is a hit, from labelled pairs (.tsv, .jsonl) or `cache`."
        ),
    ] = None,
    judge: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Gemini judges up to N near pairs of cached questions, for --calibrate."),
    ] = None,
    wrong: Annotated[str | None, typer.Option(metavar="ID", help="This answer was wrong (trace or entry id).")] = None,
    forget: Annotated[
        str | None, typer.Option(metavar="ID", help="Drop one cached answer (trace or entry id).")
    ] = None,
    invalidate: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Drop answers by role, prompt, model, namespace, route or pattern."),
    ] = None,
    export: Annotated[str | None, typer.Option(metavar="FILE", help="Write the cache to a file.")] = None,
    import_: Annotated[
        str | None, typer.Option("--import", metavar="FILE", help="Add the answers of an export.")
    ] = None,
    replay: Annotated[
        str | None, typer.Option(metavar="TRACES", help="What recorded questions would have cost under other rules.")
    ] = None,
    student: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="With --replay: the student in this folder answers the recorded questions."
        ),
    ] = None,
) -> None:
    """Answer through cache, student and Gemini, at the lowest cost."""
    from potstill.cli import infer_cache as cache
    from potstill.cli import infer_calibrate as rule

    aside: dict[str, tuple[Any, Callable[[Session, Any], None]]] = {
        "--calibrate": (calibrate, rule.calibrate),
        "--judge": (judge, rule.judge),
        "--wrong": (wrong, cache.wrong),
        "--forget": (forget, cache.forget),
        "--invalidate": (invalidate, cache.invalidate),
        "--export": (export, cache.export),
        "--import": (import_, cache.take_in),
        "--replay": (replay, lambda session, source: cache.replay(session, source, student)),
        "--stats": (stats or None, lambda session, _: cache.stats(session)),
    }
    given = {name: value for name, (value, _) in aside.items()}
    cache.exclusive({"a question": question, "--batch": batch, "--chat": chat or None, **given})
    if student is not None and replay is None:
        message = "--student goes with --replay"
        raise UsageError(message)
    for value, act in aside.values():
        if value is not None:
            act(session, value)
            return
    if session.dry_run:
        plan(session)
    elif chat:
        hold_chat(session, trace=trace)
    else:
        if output is not None:
            if batch is None:
                message = "--output goes with --batch"
                raise UsageError(message)
            check_target(output, Path(batch))
        questions = _questions(question, batch)
        if batch is None and len(questions) == 1:
            asyncio.run(_one(session, questions[0], trace=trace))
        else:
            answer_many(session, questions, Wanted(jsonl=jsonl, output=output, trace=trace))


def _questions(question: str | None, batch: str | None) -> list[str]:
    if question is not None:
        return [question]
    if batch is not None:
        return [prompt.text for prompt in read_prompt_file(batch)]
    if sys.stdin.isatty():
        message = "no question"
        raise UsageError(message, hint='potstill infer "...", --batch FILE, --chat, or lines on standard input')
    lines = [line.strip() for line in _stdin_lines() if line.strip()]
    if not lines:
        message = "no question on standard input"
        raise InputError(message)
    return lines


async def _one(session: Session, question: str, *, trace: bool) -> None:
    async with router_of(session) as router:
        with Screen(session) as screen:
            answer = await router.answer(question, tell=screen.tell)
    if not screen.finish(answer.text):
        session.show({"answer": answer.text, "trace": answer.trace.model_dump(mode="json")}, on_screen(answer.text))
    tell(session, answer.trace, whole=trace)


def _stdin_lines() -> Iterator[str]:
    try:
        for number, line in enumerate(sys.stdin, start=1):
            check_text(line, f"standard input:{number}")
            yield line
    except UnicodeDecodeError as error:
        message = f"standard input: not UTF-8 (byte {error.start})"
        raise InputError(message) from error
