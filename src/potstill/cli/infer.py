"""`potstill infer`: one question, a file of them, standard input or a chat, through the hybrid router."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.infer_screen import Screen
from potstill.cli.session import Session, quiet_libraries, with_session
from potstill.errors import InputError, PartialError, PotstillError, UsageError
from potstill.prompts import load_roles, read_prompt_file
from potstill.records import Message, Trace

if TYPE_CHECKING:
    from potstill.infer.batch import BatchResult, Journal
    from potstill.infer.labelling import Labelled
    from potstill.infer.router import Router
    from potstill.infer.settings import Settings
    from potstill.student.answers import Student
    from potstill.workspace import StudentFiles

SHOWN_FAILURES = 10
SAY_EVERY_S = 5.0
"""Seconds between two lines of a batch's progress."""


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
    """Answer through cache, then student, then Gemini: each answer at the lowest cost."""
    from potstill.cli import infer_cache as cache

    aside: dict[str, tuple[Any, Callable[[Session, Any], None]]] = {
        "--calibrate": (calibrate, cache.calibrate),
        "--judge": (judge, _judge),
        "--wrong": (wrong, cache.wrong),
        "--forget": (forget, cache.forget),
        "--invalidate": (invalidate, cache.invalidate),
        "--export": (export, cache.export),
        "--import": (import_, cache.take_in),
        "--replay": (replay, lambda session, source: cache.replay(session, source, student)),
        "--stats": (stats, lambda session, _: cache.stats(session)),
    }
    given = {name: value for name, (value, _) in aside.items()}
    cache.exclusive({"a question": question, "--batch": batch, "--chat": chat, **given})
    if student is not None and replay is None:
        message = "--student goes with --replay"
        raise UsageError(message)
    for value, act in aside.values():
        if value:
            act(session, value)
            return
    if session.dry_run:
        _plan(session)
    elif chat:
        asyncio.run(_chat(session, trace=trace))
    else:
        _answer(
            session,
            _questions(question, batch),
            Wanted(batch=batch is not None, jsonl=jsonl, output=output, trace=trace),
        )


@dataclass(frozen=True)
class Wanted:
    """How the answers are given."""

    batch: bool
    jsonl: bool
    output: Path | None
    trace: bool


def _answer(session: Session, questions: list[str], wanted: Wanted) -> None:
    if not wanted.batch and wanted.output is not None:
        message = "--output goes with --batch"
        raise UsageError(message)
    if not wanted.batch and len(questions) == 1:
        asyncio.run(_one(session, questions[0], trace=wanted.trace))
    else:
        _many(session, questions, wanted)


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
    async with _router(session) as router:
        with Screen(session) as screen:
            answer = await router.answer(question, tell=screen.tell)
    if not screen.finish(answer.text):
        session.show({"answer": answer.text, "trace": answer.trace.model_dump(mode="json")}, answer.text)
    _tell(session, answer.trace, whole=trace)


def _many(session: Session, questions: Sequence[str], wanted: Wanted) -> None:
    from potstill.infer.batch import Journal, summarise, summary_lines

    journal = Journal(wanted.output) if wanted.output is not None else None
    result = asyncio.run(_run_batch(session, questions, journal))
    traces = [row.trace for row in result.answers.values()]
    summary = summarise(traces, len(result.failures))
    document: dict[str, Any] = {
        "summary": summary.model_dump(mode="json"),
        "failed": [vars(failure) for failure in result.failures],
        "stopped": result.stopped.message if result.stopped else None,
    }
    if journal is not None:
        journal.finish(result)
        session.show({**document, "output": str(wanted.output)}, f"{len(traces)} answers in {wanted.output}")
    else:
        answers = [row.model_dump(mode="json") for row in result.answers.values()]
        session.show({**document, "answers": answers}, _batch_text(result, jsonl=wanted.jsonl))
    if wanted.trace:
        for found in traces:
            _tell(session, found, whole=True)
    for line in summary_lines(summary):
        session.say(line)
    for failure in result.failures[:SHOWN_FAILURES]:
        session.say(f"failed: {failure.question}: {failure.message}")
    _end(session, result)


def _end(session: Session, result: BatchResult) -> None:
    """Leave with the exit code of what went wrong; with --json the one document has already told it."""
    error: PotstillError | None = result.stopped
    if error is None and result.failures:
        message = f"{len(result.failures)} questions got no answer"
        error = PartialError(message, hint="run the same command again: the others are in the cache or the ledger")
    if error is not None and session.as_json:
        raise typer.Exit(error.exit_code)
    if error is not None:
        raise error


async def _run_batch(session: Session, questions: Sequence[str], journal: Journal | None) -> BatchResult:
    from potstill.infer.batch import Row, answer_all

    known = journal.known(questions) if journal is not None else {}
    if known:
        session.say(f"{len(known)} of {len(questions)} questions were answered before")
    done, said = len(known), time.monotonic()

    def note(place: int, row: Row | None) -> None:
        nonlocal done, said
        done += 1
        if journal is not None and row is not None:
            journal.add(place, row)
        if (now := time.monotonic()) - said >= SAY_EVERY_S:
            said = now
            session.say(f"{done} of {len(questions)}")

    async with _router(session) as router:
        return await answer_all(router, questions, session.config.teacher.max_concurrency, known=known, on_done=note)


async def _chat(session: Session, *, trace: bool) -> None:
    """Read a line, answer it, remember both. Ends with the input, an empty line or Ctrl-C."""
    prompted = sys.stdin.isatty()
    history: list[Message] = []
    turns: list[dict[str, Any]] = []
    async with _router(session) as router:
        while line := await asyncio.to_thread(_read_turn, prompted=prompted):
            with Screen(session) as screen:
                answer = await router.answer(line, history=tuple(history), tell=screen.tell)
            history += [Message(role="user", content=line), Message(role="assistant", content=answer.text)]
            turns.append(_row(line, answer.text, answer.trace))
            if not session.as_json and not screen.finish(answer.text):
                session.show({}, answer.text)
            _tell(session, answer.trace, whole=trace)
    if session.as_json:
        session.show({"turns": turns}, "")


def _read_turn(*, prompted: bool) -> str:
    if prompted:
        sys.stderr.write("> ")
        sys.stderr.flush()
    return sys.stdin.readline().strip()


def _stdin_lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        message = f"standard input: not UTF-8 (byte {error.start})"
        raise InputError(message) from error


def _router(session: Session) -> AbstractAsyncContextManager[Router]:
    from potstill.infer.router import open_router

    return open_router(session.config, session.secrets, session.workspace, _student(session))


def _student(session: Session) -> Student | None:
    """The student of the config, not yet loaded; None where none is trained."""
    from potstill.infer.panel import LazyStudent, files_fingerprint, read_verdict

    config = session.config
    files = session.workspace.student(config.distill.name)
    if config.infer.student_url is not None:
        return _remote(session, config.infer.student_url, files)
    verdict = read_verdict(files)
    roles = tuple(role.name for role in load_roles(config.infer.roles, config.language))
    roles = roles or (tuple(verdict.by_role) if verdict else ())
    if not files.adapter.is_dir() and not (files.root / "adapters").is_dir():
        return None

    def load() -> Student:
        from potstill.student.local import load_student

        quiet_libraries(session)
        return load_student(files, config.student)

    if not roles:
        return load()
    base = f"{config.student.base}@{config.student.revision}"
    return LazyStudent(config.distill.name, roles, files_fingerprint(files, base), load)


def _remote(session: Session, url: str, files: StudentFiles) -> Student:
    """The student of a server. Its system prompts: as it was trained on them, where it was trained here, else the files'."""
    from potstill.student.manifest import read_manifest
    from potstill.student.remote import RemoteStudent

    config, key = session.config, session.secrets.student_key
    known = load_roles(config.infer.roles or config.generate.roles, config.language)
    systems = {role.name: role.system for role in known}
    if files.manifest.is_file():
        trained = {role.name: role.system for role in read_manifest(files).roles}
        systems = (
            {name: trained.get(name, system) for name, system in systems.items()} if config.infer.roles else trained
        )
    secret = None if key is None else key.get_secret_value()
    return RemoteStudent(url, systems, secret, config.infer.student_timeout_s)


def _judge(session: Session, most: int) -> None:
    """Have Gemini judge near pairs of what the cache holds."""
    if session.dry_run:
        session.show_plan({"judge": most}, f"would have {session.config.teacher.model} judge up to {most} pairs")
        return
    done = asyncio.run(_judged(session, most))
    wrong = sum(not item.fits for item in done.judged)
    text = (
        f"{len(done.judged)} of {done.pairs} pairs judged for ${done.cost_usd.normalize():f}: {wrong} do not fit; now "
        "--calibrate cache"
    )
    document = {"pairs": done.pairs, "judged": len(done.judged), "wrong": wrong, "problem": done.problem}
    session.show({**document, "cost_usd": format(done.cost_usd, "f")}, text)
    if done.problem is not None:
        error = PartialError(
            f"{done.pairs - len(done.judged)} pairs were not judged: {done.problem.removeprefix('not audited: ')}"
        )
        session.complain(error)
        raise typer.Exit(error.exit_code)


async def _judged(session: Session, most: int) -> Labelled:
    async with _router(session) as router:
        return await router.label(most)


def _plan(session: Session) -> None:
    from potstill.infer.settings import make_settings

    student = _student(session)
    settings = make_settings(session.config, session.workspace, student)
    who = f"student {student.name!r} as {', '.join(settings.asked)}" if student else "no student"
    text = (
        f"exact match, then near questions ({_nearness(settings)}) with {session.config.cache.encoder}, then {who}, "
        f"then {session.config.teacher.model}: {settings.policy.reason}"
    )
    session.show_plan({"scope": settings.scope.id, "decide": settings.policy.mode, "student": bool(student)}, text)


def _row(question: str, answer: str, trace: Trace) -> dict[str, Any]:
    return {"question": question, "answer": answer, "trace": trace.model_dump(mode="json")}


def _nearness(settings: Settings) -> str:
    """When a near question is a hit, as far as it is known before the encoder is loaded."""
    from potstill.infer.rule import SAFE_COSINE

    if (threshold := settings.config.cache.threshold) is not None:
        return f"cosine >= {threshold:g}, no bound on wrong hits"
    if settings.calibration is not None:
        return settings.calibration.reason
    return f"cosine >= {SAFE_COSINE:g}, not calibrated"


def _batch_text(result: BatchResult, *, jsonl: bool) -> str:
    rows = result.answers.values()
    if jsonl:
        return "\n".join(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) for row in rows)
    return "\n".join(f"[{row.trace.route}] {row.question}\n{row.answer}\n" for row in rows)


def _tell(session: Session, trace: Trace, *, whole: bool) -> None:
    """The way of one answer on standard error: a line, or the whole trace."""
    from potstill.infer.batch import beside_gemini

    if whole:
        session.say(trace.to_line().rstrip("\n"))
        return
    cost = beside_gemini(trace.cost_usd, trace.baseline_usd)
    session.say(f"{trace.route}: {trace.reason}; {cost}; {trace.latency_s:.2f} s; id {trace.id}")
