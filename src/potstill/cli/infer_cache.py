"""What `potstill infer` does with its cache and traces beside answering: statistics, feedback, dropping, export, replay."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.cli.infer_calibrate import in_short
from potstill.cli.session import Session, quiet_libraries
from potstill.errors import InputError, UsageError
from potstill.files import check_target, read_lines
from potstill.records import Trace, from_lines
from potstill.wording import counted
from potstill.workspace import StudentFiles

if TYPE_CHECKING:
    from potstill.infer.replay import Outcome
    from potstill.infer.store import EntryStore


def stats(session: Session) -> None:
    """What the cache holds, how it is calibrated, and what audits found."""
    from potstill.infer.calibrating import calibration_files, read_calibration
    from potstill.infer.replay import escalated, read_traces
    from potstill.infer.upkeep import audits, statistics

    folder = session.workspace.traces
    looked = escalated(read_traces(folder, folder) if any(folder.glob("*.jsonl")) else [])
    calibration = read_calibration(calibration_files(session.config.cache, session.workspace).json)
    store = _store(session)
    if store is None:
        session.show({"namespaces": [], "audits": [], "calibration": None}, "the cache is empty")
        return
    with store:
        found, checked = statistics(store), audits(store.judged())
    lines = [f"{row.namespace}: {counted(row.entries, 'answer')}, served {counted(row.hits, 'time')}" for row in found]
    lines += [
        f"{row.source}: {row.wrong} of {row.judged} would-be hits wrong ({row.low:.1%} to {row.high:.1%})"
        for row in checked
    ]
    if looked.seen:
        lines.append(
            f"student: of {looked.seen} sure answers that Gemini saw at random {looked.disagreed} said something else "
            f"({looked.low:.1%} to {looked.high:.1%})"
        )
    lines.append(f"calibration: {calibration.reason}" if calibration else "calibration: none; see --calibrate")
    document = {
        "namespaces": [vars(row) for row in found],
        "audits": [vars(row) for row in checked],
        "escalated": looked.model_dump(mode="json"),
        "calibration": in_short(calibration) if calibration else None,
    }
    session.show(document, "\n".join(lines if found else ["the cache is empty", *lines]))


def forget(session: Session, identity: str) -> None:
    """Drop one answer, by its entry id or the id of a trace that was served from it."""
    trace = _trace(session, identity)
    entry = (trace.entry_id or identity) if trace else identity
    if session.dry_run:
        session.show_plan({"forget": entry}, f"would drop {entry}")
        return
    store = _store(session)
    dropped = False
    if store is not None:
        with store:
            dropped = store.forget(entry)
    if not dropped:
        message = f"no cached answer has the id {identity!r}"
        raise InputError(message, hint="the id stands in the trace as entry_id, and in the line after an answer")
    session.show({"forgotten": entry}, f"forgotten: {entry}; the question is asked anew next time")


def wrong(session: Session, identity: str) -> None:
    """Take in that an answer was wrong: a semantic hit must score higher from now on, any other answer is dropped."""
    from potstill.infer.store import Judged

    trace = _trace(session, identity)
    if trace is None or trace.route != "semantic" or trace.entry_id is None:
        forget(session, identity)
        return
    if session.dry_run:
        session.show_plan({"wrong": trace.entry_id}, f"would tighten {trace.entry_id}")
        return
    with _open(session) as store:
        entry = next((found for found in store.entries() if found.id == trace.entry_id), None)
        if entry is None:
            message = f"the cached answer {trace.entry_id} is gone already"
            raise InputError(message)
        score = trace.score if trace.score is not None else (trace.cosine or 1.0)
        store.raise_floor(entry.id, score)
        store.note_judged(Judged("feedback", trace.namespace, trace.query, entry.question, fits=False), time.time())
    text = f"noted: a question as near to {entry.question!r} (score {score:.3f}) no longer gets its answer"
    session.show({"tightened": entry.id, "floor": score}, text)


def invalidate(session: Session, filters: list[str]) -> None:
    """Drop all answers to which the filters apply."""
    from potstill.infer.upkeep import matching, parse_filters

    wanted = parse_filters(filters)
    store = _store(session)
    found: list[str] = []
    if store is not None:
        with store:
            found = [entry.id for entry in matching(store, wanted)]
            for identity in found if not session.dry_run else []:
                store.forget(identity)
    if session.dry_run:
        session.show_plan({"invalidate": len(found)}, f"would drop {counted(len(found), 'answer')}")
    else:
        session.show(
            {"invalidated": len(found)}, f"dropped {counted(len(found), 'answer')}; what they answered is asked anew"
        )


def export(session: Session, target: str) -> None:
    """Write all entries to a file."""
    from potstill.infer.upkeep import export as write

    check_target(Path(target))
    if session.dry_run:
        session.show_plan({"export": target}, f"would write the cache to {target}")
        return
    with _open(session) as store:
        count = write(store, Path(target))
    session.show({"exported": count, "file": target}, f"{counted(count, 'answer')} written to {target}")


def take_in(session: Session, source: str) -> None:
    """Add the entries of an export."""
    from potstill.infer.upkeep import restore

    if session.dry_run:
        session.show_plan({"import": source}, f"would add the answers of {source}")
        return
    with _open(session) as store:
        added, known = restore(store, Path(source), time.time())
    session.show({"imported": added, "known": known}, f"{counted(added, 'answer')} added, {known} here already")


def replay(session: Session, source: str, student: Path | None) -> None:
    """Say what recorded questions would have cost under other rules, or with another student."""
    from potstill.infer.panel import read_verdict
    from potstill.infer.replay import read_traces, wanted
    from potstill.infer.replay import replay as run

    config = session.config
    verdict = read_verdict(session.workspace.student(config.distill.name))
    threshold = None if verdict is None else verdict.router.threshold
    traces = read_traces(Path(source), session.workspace.traces)
    outcomes = run(traces, wanted(config.cache.threshold, config.infer.decide, threshold))
    if student is not None:
        outcomes = [outcomes[0], _rehearsed(session, traces, student)]
    head = f"{'hits':>6} {'student':>8} {'Gemini':>7} {'cost':>12} {'of all-Gemini':>14} {'disagreed':>12}  rule"
    lines = [
        f"{found.hits:>6} {found.students:>8} {found.gemini:>7} {'$' + format(round(found.cost_usd, 6), 'f'):>12} "
        f"{found.share_of_all_gemini:>14.0%} {f'{found.disagreed} of {found.compared}':>12}  {found.rule}"
        for found in outcomes
    ]
    note = "disagreed: of the answers that Gemini gave as well, those that share less than half their words with it"
    session.show({"outcomes": [found.model_dump(mode="json") for found in outcomes]}, "\n".join([head, *lines, note]))


def _rehearsed(session: Session, traces: list[Trace], folder: Path) -> Outcome:
    """The recorded questions, answered by the student in a folder."""
    from potstill.infer.cache import open_encoder
    from potstill.infer.decide import policy
    from potstill.infer.panel import Panel, read_verdict
    from potstill.infer.rehearsal import Candidate, geminis_answers, rehearse
    from potstill.infer.settings import chosen_roles
    from potstill.student.familiar import read_known
    from potstill.student.local import load_student
    from potstill.student.manifest import read_manifest

    files = StudentFiles(folder)
    verdict = read_verdict(files)
    if verdict is None:
        message = f"{folder} holds no student with a verdict"
        raise InputError(message, hint="give its folder: students/<name>")
    config = session.config
    decided = policy(config.infer.decide, verdict.router)
    quiet_libraries(session)
    student = load_student(files, config.student, session.say)
    roles = chosen_roles(config, student, read_manifest(files).roles)
    panel = Panel(student, [role.name for role in roles], config.infer.max_new_tokens)
    reader = open_encoder(config.cache, session.workspace) if decided.familiar else None
    geminis: dict[str, str] = {}
    if (store := _store(session)) is not None:
        with store:
            geminis = geminis_answers(traces, store.entries())
    return asyncio.run(rehearse(traces, Candidate(panel, decided, read_known(files.questions), reader), geminis))


def _store(session: Session) -> EntryStore | None:
    from potstill.infer.cache import entries_file
    from potstill.infer.store import EntryStore

    path = entries_file(session.config.cache, session.workspace)
    return EntryStore(path) if path.is_file() else None


def _open(session: Session) -> EntryStore:
    from potstill.infer.cache import entries_file
    from potstill.infer.store import EntryStore

    return EntryStore(entries_file(session.config.cache, session.workspace))


def _trace(session: Session, identity: str) -> Trace | None:
    """The trace of an id, the newest files first; None where there is none."""
    if not identity.strip() or any(sign not in "0123456789abcdef" for sign in identity):
        return None
    folder = session.workspace.traces
    for file in sorted(folder.glob("*.jsonl"), reverse=True) if folder.is_dir() else []:
        for trace in from_lines(Trace, (line for line in read_lines(file, "traces") if identity in line), file):
            if trace.id == identity:
                return trace
    message = f"no trace has the id {identity!r}"
    raise InputError(message, hint="the id stands at the end of the line after an answer")


def exclusive(given: dict[str, object]) -> None:
    """Refuse options that exclude each other."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        message = f"{' and '.join(names)} exclude each other"
        raise UsageError(message)
