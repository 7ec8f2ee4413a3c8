"""The semantic layer's rule, set from labelled pairs: `potstill infer --calibrate`, and `--judge`, which labels them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from potstill.cli.infer_router import router_of
from potstill.cli.session import Session
from potstill.errors import InputError, PartialError
from potstill.wording import counted

if TYPE_CHECKING:
    from potstill.infer.calibration import Calibration
    from potstill.infer.labelling import Labelled

FROM_CACHE = "cache"
"""In place of a file of pairs: the verdicts that shadow mode, audits and feedback have left in the cache."""
PROGRESS = 256 * 20
"""Questions encoded between two lines of progress."""


def calibrate(session: Session, source: str) -> None:
    """Set the semantic layer's rule from labelled pairs."""
    from potstill.infer.cache import entries_file
    from potstill.infer.calibrating import calibration_files, run_calibration
    from potstill.infer.pairs import Pair, read_pairs
    from potstill.infer.store import EntryStore

    cache = session.config.cache
    if source == FROM_CACHE:
        with EntryStore(entries_file(cache, session.workspace)) as store:
            judged = store.judged()
        pairs = tuple(Pair(found.question, found.cached, found.fits) for found in judged)
        if not pairs:
            message = "the cache holds no verdicts yet"
            raise InputError(message, hint="gather some with cache.shadow: true, or give a file of pairs")
    else:
        pairs = read_pairs(Path(source))
    if session.dry_run:
        session.show_plan({"pairs": len(pairs)}, f"would calibrate {cache.encoder} on {counted(len(pairs), 'pair')}")
        return
    files = calibration_files(cache, session.workspace)

    def progress(done: int, of: int) -> None:
        if done == of or done % PROGRESS == 0:
            session.say(f"encoded {done} of {counted(of, 'question')}")

    found = run_calibration(cache, session.workspace, pairs, source, progress)
    if cache.threshold is not None:
        session.say(
            f"note: cache.threshold {cache.threshold:g} is set and wins over this; unset it to use the calibration"
        )
    session.show({"calibration": in_short(found), "files": [str(files.json), str(files.png)]}, _told(found, files.png))


def judge(session: Session, most: int) -> None:
    """Have Gemini judge near pairs of what the cache holds."""
    if session.dry_run:
        session.show_plan({"judge": most}, f"would have {session.config.teacher.model} judge up to {most} pairs")
        return
    done = asyncio.run(_judged(session, most))
    wrong = sum(not item.fits for item in done.judged)
    text = "the cache holds no two near questions that were not judged yet"
    if done.pairs:
        text = (
            f"{len(done.judged)} of {counted(done.pairs, 'pair')} judged for ${done.cost_usd.normalize():f}: {wrong} do not fit; now "
            "--calibrate cache"
        )
    document = {"pairs": done.pairs, "judged": len(done.judged), "wrong": wrong, "problem": done.problem}
    session.show({**document, "cost_usd": format(done.cost_usd, "f")}, text)
    if done.problem is not None:
        error = PartialError(
            f"not judged: {counted(done.pairs - len(done.judged), 'pair')}: {done.problem.removeprefix('not audited: ')}"
        )
        session.complain(error)
        raise typer.Exit(error.exit_code)


async def _judged(session: Session, most: int) -> Labelled:
    async with router_of(session) as router:
        return await router.label(most)


def in_short(found: Calibration) -> dict[str, Any]:
    """A calibration without its verifier's numbers."""
    return found.model_dump(mode="json", exclude={"verifier"})


def _told(found: Calibration, drawing: Path) -> str:
    """A calibration for a reader: the rule, and how it does on pairs that took no part."""
    pairs = ", ".join(f"{count} {name}" for name, count in found.pairs.items())
    lines = [found.reason, "", f"pairs: {pairs}; {found.same_share:.0%} have one answer", ""]
    lines.append(f"{'served':>8} {'wrong':>7} {'of served':>10}  on {found.pairs['heldout']} held-out pairs")
    lines += [f"{row.served:>8} {row.wrong:>7} {f'{row.wrong_rate:.1%}':>10}  {row.rule}" for row in found.held_out]
    lines += ["", f"drawn in {drawing}", "The bound holds for questions that resemble these pairs, and for no others."]
    return "\n".join(lines)
