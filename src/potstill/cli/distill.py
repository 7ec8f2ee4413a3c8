"""`potstill distill`: a dataset -> a student -> a verdict."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from potstill.cli.distill_view import show_dry_run
from potstill.cli.session import Session, quiet_libraries, with_session
from potstill.errors import QualityGateError

if TYPE_CHECKING:
    from potstill.distill.export import Agreement, Exported
    from potstill.distill.progress import Follow, Progress
    from potstill.records import Score, Verdict

SAY_EVERY_S = 5.0


@with_session(
    name="distill.name",
    base="student.base",
    device="student.device",
    adapters="distill.adapters",
    epochs="distill.epochs",
    learning_rate="distill.learning_rate",
    gate="distill.gate",
)
def distill(
    session: Session,
    plan: Annotated[bool, typer.Option("--plan", help="Say whether it fits the card, and how long it takes.")] = False,
    card: Annotated[str | None, typer.Option(help="Plan for this card (T4, L4, RTX 4090, H100 ...).")] = None,
    memory_gib: Annotated[float | None, typer.Option(min=0.1, help="Plan for a card with this much free.")] = None,
    export: Annotated[
        bool, typer.Option("--export", help="Also merge it for transformers, Ollama, llama.cpp.")
    ] = False,
) -> None:
    """Train a student on the dataset, and judge it. The same command again resumes."""
    if plan:
        from potstill.cli.distill_plan import show_plan

        show_plan(session, card, memory_gib)
        return
    quiet_libraries(session)
    from potstill.distill.prepare import prepare
    from potstill.distill.run import distill as run_distill

    if session.dry_run:
        show_dry_run(session, prepare(session.config, session.workspace, session.say))
        return
    from potstill.infer.cache import open_encoder

    done = run_distill(
        session.config,
        session.workspace,
        session.say,
        _follow(session),
        session.secrets,
        lambda: open_encoder(session.config.cache, session.workspace),
    )
    exported = _export(session) if export and done is not None else []
    if done is None:
        return  # a launcher's further process: the first one tells
    files = session.workspace.student(session.config.distill.name)
    document = {"student": str(files.root), "trained": done.fresh, "verdict": done.verdict.model_dump(mode="json")}
    document |= {"exported": [item.model_dump() for item in exported]} if export else {}
    intro = "" if done.fresh else "finished before, nothing to do\n"
    session.show(document, intro + _text(done.verdict) + _exported(exported) + f"\nsee {files.report}")
    if session.config.distill.gate and not done.verdict.can_replace:
        refusal = QualityGateError(f"the student cannot replace the teacher: {done.verdict.reason}")
        session.complain(refusal)
        raise typer.Exit(refusal.exit_code)


def _export(session: Session) -> list[Exported]:
    from potstill.distill.data import read_data
    from potstill.distill.export import export

    session.say("merging, and comparing the merged model with its adapter")
    files = session.workspace.student(session.config.distill.name)
    held_out = read_data(session.workspace, session.config.distill.near_duplicate).held_out
    return export(files, session.config.student, held_out)


def _exported(exported: list[Exported]) -> str:
    lines = []
    for item in exported:
        lines.append(f"merged into {item.folder}: {_agreement(item.agreement)}")
        if item.gguf_agreement is not None:
            lines.append(f"  {item.gguf}: {_agreement(item.gguf_agreement)}")
        else:
            lines.append(f"  no GGUF is written for {item.gguf_reason}; llama.cpp makes one: {item.gguf_command}")
        lines += [f"  ollama create {role} -f {path}" for role, path in item.modelfiles.items()]
    return "".join(f"\n{line}" for line in lines)


def _agreement(found: Agreement) -> str:
    answers = f"{found.same_answers} of {found.answered} greedy answers"
    return f"{found.same_token:.1%} same tokens at {found.positions} places, {answers}"


def _text(verdict: Verdict) -> str:
    from potstill.distill.report import meaning, score_rows, summary

    answer = "yes" if verdict.can_replace else "no"
    return "\n".join(
        [
            f"{'on held-out questions':28} {'n':>5} {'exact':>7} {'score':>7} {'95 %':>13} {'NLL':>6} {'meaning':>8}",
            *(_row(name, score) for name, score in score_rows(verdict)),
            f"can it replace {verdict.teacher_model}? {answer}: {verdict.reason}",
            *summary(verdict),
            *([meaning(verdict)] if verdict.encoder else []),
        ]
    )


def _row(name: str, score: Score) -> str:
    nll = "-" if score.nll is None else f"{score.nll:.2f}"
    near = "-" if score.similarity is None else f"{score.similarity:.2f}"
    span = f"{score.low:.2f} to {score.high:.2f}"
    return f"{name:28} {score.n:5} {score.exact:7.0%} {score.score:7.2f} {span:>13} {nll:>6} {near:>8}"


def _follow(session: Session) -> Follow:
    started = last = time.monotonic()

    def follow(now: Progress) -> None:
        nonlocal last
        at = time.monotonic()
        if at - last >= SAY_EVERY_S or now.step == now.steps:
            last = at
            left = (at - started) / now.step * (now.steps - now.step)
            speed = f"{now.tokens_per_s:.0f} tokens/s" + ("" if now.mfu is None else f", MFU {now.mfu:.0%}")
            session.say(f"distill: step {now.step}/{now.steps}, loss {now.loss:.3f}, {speed}, {left:.0f} s to go")

    return follow
