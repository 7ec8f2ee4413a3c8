"""`potstill infer`: one question, a file of them, standard input or a chat, through the hybrid router."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from potstill.cli.session import Session, quiet_libraries, with_session
from potstill.errors import InputError, PartialError, PotstillError, UsageError
from potstill.prompts import load_roles, read_prompt_file
from potstill.records import Message, Trace

if TYPE_CHECKING:
    from potstill.infer.batch import BatchResult
    from potstill.infer.router import Router
    from potstill.student.answers import Student

SHOWN_FAILURES = 10


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
    trace: Annotated[bool, typer.Option("--trace", help="Show the whole trace of each question.")] = False,
    forget: Annotated[str | None, typer.Option(metavar="ID", help="Drop one cached answer, by its entry id.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show what the cache holds.")] = False,
) -> None:
    """Answer through cache, then student, then Gemini: each answer at the lowest cost."""
    given = [
        name
        for name, value in {
            "a question": question,
            "--batch": batch,
            "--chat": chat,
            "--forget": forget,
            "--stats": stats,
        }.items()
        if value
    ]
    if len(given) > 1:
        message = f"{' and '.join(given)} exclude each other"
        raise UsageError(message)
    if stats:
        _stats(session)
    elif forget is not None:
        _forget(session, forget)
    elif session.dry_run:
        _plan(session)
    elif chat:
        asyncio.run(_chat(session, trace=trace))
    else:
        questions = _questions(question, batch)
        if batch is None and len(questions) == 1:
            asyncio.run(_one(session, questions[0], trace=trace))
        else:
            _many(session, questions, jsonl=jsonl, trace=trace)


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
        answer = await router.answer(question)
    session.show({"answer": answer.text, "trace": answer.trace.model_dump(mode="json")}, answer.text)
    _tell(session, answer.trace, whole=trace)


def _many(session: Session, questions: Sequence[str], *, jsonl: bool, trace: bool) -> None:
    from potstill.infer.batch import beside_gemini, summarise

    result = asyncio.run(_run_batch(session, questions))
    traces = [answer.trace for answer in result.answers.values()]
    summary = summarise(traces, len(result.failures))
    document = {
        "summary": summary.model_dump(mode="json"),
        "answers": [_row(questions[place], answer.text, answer.trace) for place, answer in result.answers.items()],
        "failed": [vars(failure) for failure in result.failures],
        "stopped": result.stopped.message if result.stopped else None,
    }
    session.show(document, _batch_text(questions, result, jsonl=jsonl))
    if trace:
        for found in traces:
            _tell(session, found, whole=True)
    routes = ", ".join(f"{count} {route}" for route, count in summary.routes.items() if count) or "none answered"
    session.say(f"{summary.questions} questions: {routes}; hit rate {summary.hit_rate:.0%}")
    session.say(f"cost {beside_gemini(summary.cost_usd, summary.baseline_usd)}")
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


async def _run_batch(session: Session, questions: Sequence[str]) -> BatchResult:
    from potstill.infer.batch import answer_all

    async with _router(session) as router:
        return await answer_all(router, questions, session.config.teacher.max_concurrency)


async def _chat(session: Session, *, trace: bool) -> None:
    """Read a line, answer it, remember both. Ends with the input, an empty line or Ctrl-C."""
    prompted = sys.stdin.isatty()
    history: list[Message] = []
    turns: list[dict[str, Any]] = []
    async with _router(session) as router:
        while line := await asyncio.to_thread(_read_turn, prompted=prompted):
            answer = await router.answer(line, history=tuple(history))
            history += [Message(role="user", content=line), Message(role="assistant", content=answer.text)]
            turns.append(_row(line, answer.text, answer.trace))
            if not session.as_json:
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
    verdict = read_verdict(files)
    roles = tuple(role.name for role in load_roles(config.infer.roles, config.language))
    roles = roles or (tuple(verdict.by_role) if verdict else ())
    if config.infer.student_url is not None:
        from potstill.student.remote import RemoteStudent

        return RemoteStudent(config.infer.student_url, roles)
    if not files.adapter.is_dir() and not (files.root / "adapters").is_dir():
        return None

    def load() -> Student:
        from potstill.student.local import load_student

        quiet_libraries()
        return load_student(files, config.student)

    if not roles:
        return load()
    base = f"{config.student.base}@{config.student.revision}"
    return LazyStudent(config.distill.name, roles, files_fingerprint(files, base), load)


def _stats(session: Session) -> None:
    from potstill.infer.cache import entries_file
    from potstill.infer.store import read_statistics

    found = read_statistics(entries_file(session.config.cache, session.workspace))
    lines = [f"{row.namespace}: {row.entries} answers, served {row.hits} times" for row in found]
    session.show({"namespaces": [vars(row) for row in found]}, "\n".join(lines) or "the cache is empty")


def _forget(session: Session, identity: str) -> None:
    from potstill.infer.cache import entries_file
    from potstill.infer.store import EntryStore

    path = entries_file(session.config.cache, session.workspace)
    if session.dry_run:
        session.show_plan({"forget": identity}, f"would drop {identity}")
        return
    found = False
    if path.is_file():
        with EntryStore(path) as store:
            found = store.forget(identity)
    if not found:
        message = f"no cached answer has the id {identity!r}"
        raise InputError(message, hint="the id stands in the trace as entry_id, and in the line after an answer")
    session.show({"forgotten": identity}, f"forgotten: {identity}; the question is asked anew next time")


def _plan(session: Session) -> None:
    from potstill.infer.settings import make_settings

    student = _student(session)
    settings = make_settings(session.config, session.workspace, student)
    who = f"student {student.name!r} as {', '.join(settings.asked)}" if student else "no student"
    text = (
        f"exact match, then cosine >= {session.config.cache.threshold:g} with {session.config.cache.encoder}, then {who}, "
        f"then {session.config.teacher.model}: {settings.policy.reason}"
    )
    session.show_plan({"scope": settings.scope.id, "decide": settings.policy.mode, "student": bool(student)}, text)


def _row(question: str, answer: str, trace: Trace) -> dict[str, Any]:
    return {"question": question, "answer": answer, "trace": trace.model_dump(mode="json")}


def _batch_text(questions: Sequence[str], result: BatchResult, *, jsonl: bool) -> str:
    rows = [(questions[place], answer.text, answer.trace) for place, answer in result.answers.items()]
    if jsonl:
        return "\n".join(json.dumps(_row(*row), ensure_ascii=False) for row in rows)
    return "\n".join(f"[{trace.route}] {question}\n{answer}\n" for question, answer, trace in rows)


def _tell(session: Session, trace: Trace, *, whole: bool) -> None:
    """The way of one answer on standard error: a line, or the whole trace."""
    from potstill.infer.batch import beside_gemini

    if whole:
        session.say(trace.to_line().rstrip("\n"))
        return
    cost = beside_gemini(trace.cost_usd, trace.baseline_usd)
    entry = f"; entry {trace.entry_id}" if trace.entry_id else ""
    session.say(f"{trace.route}: {trace.reason}; {cost}; {trace.latency_s:.2f} s{entry}")
