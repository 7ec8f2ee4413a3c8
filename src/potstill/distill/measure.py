"""What the verdict stands on: the answers before and after training, what an encoder tells of them, and the judge's word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from potstill.config import Config, Secrets
from potstill.distill.asking import Judged, answers, likelihood
from potstill.distill.heldout import question_of
from potstill.distill.judge import Evidence, own_agreement
from potstill.distill.prepare import Prepared
from potstill.distill.router import Nearness
from potstill.distill.similarity import measured
from potstill.errors import MachineError
from potstill.student.familiar import Reader, known_questions, nearness, write_known
from potstill.student.local import Loaded, LocalStudent, Persona, read_student
from potstill.student.manifest import read_manifest
from potstill.workspace import StudentFiles, Workspace

Say = Callable[[str], None]
MakeReader = Callable[[], Reader]


def measure(config: Config, files: StudentFiles, prepared: Prepared, say: Say) -> Evidence:
    """The held-out answers of the base, of the trained student and of the one before it, on one base in memory."""
    data, settings = prepared.data, config.distill
    student = LocalStudent(
        Persona("base", data.roles), prepared.load(config.student), prepared.tokenizer, prepared.base_sha
    )
    say(f"the base answers {len(data.held_out)} held-out questions")
    before = answers(student, data.held_out, settings.max_new_tokens)
    costs = likelihood(student, data.held_out, settings.max_length)
    say("the student answers the same questions")
    student.take(read_student(files))
    after = answers(student, data.held_out, settings.max_new_tokens)
    trained_costs = likelihood(student, data.held_out, settings.max_length)
    earlier: list[Judged] = []
    if (other := _comparable(files.earlier, prepared)) is not None:
        say("so does the student before it")
        student.take(other)
        earlier = answers(student, data.held_out, settings.max_new_tokens)
    return Evidence(
        before,
        after,
        earlier,
        near_duplicates=len(data.leaks),
        ceiling=own_agreement([*data.train, *data.validation, *data.test]),
        nll={name: (costs[name], trained_costs[name]) for name in costs},
    )


def read_by_encoder(
    evidence: Evidence, files: StudentFiles, prepared: Prepared, reader: MakeReader | None, say: Say
) -> Evidence:
    """What an encoder tells, where one can be had: which questions are near the training, which answers each other."""
    files.questions.unlink(missing_ok=True)
    if reader is None:
        return evidence
    try:
        encoder = reader()
    except MachineError as error:
        say(f"the router will not know foreign questions: {error.message}")
        return replace(evidence, encoder=f"not measured: {error.message}")
    evidence = replace(evidence, near=_near(files, prepared, encoder, say))
    if encoder.id.startswith("hashing"):
        return replace(evidence, encoder="not measured: the encoder hashing reads spelling alone")
    before, after = measured(evidence.before, encoder), measured(evidence.after, encoder)
    return replace(evidence, before=before, after=after, encoder=encoder.id)


def judged_by_teacher(
    evidence: Evidence, config: Config, workspace: Workspace, plan_id: str, secrets: Secrets | None, say: Say
) -> Evidence:
    """Let the teacher judge the answers, where it has a budget for that."""
    if config.distill.judge.max_usd is None:
        return evidence
    from potstill.distill.duel import judge_by_teacher

    say(f"the teacher judges the answers, for at most ${config.distill.judge.max_usd:f}")
    student = f"{config.distill.name} {plan_id.rpartition(':')[2][:8]}"
    found = asyncio.run(judge_by_teacher(config, secrets or Secrets(), workspace, student, evidence.after))
    if found.stopped:
        say(f"judging stopped early: {found.stopped}")
    return replace(evidence, after=found.judged, duel=found.duel, ceiling=found.ceiling or evidence.ceiling)


def _comparable(earlier: StudentFiles, prepared: Prepared) -> Loaded | None:
    """The student that stood here before, where it was made to answer the same: on this base, in these roles."""
    if not earlier.manifest.is_file():
        return None
    manifest = read_manifest(earlier)
    same = (manifest.base_sha, manifest.roles) == (prepared.base_sha, prepared.data.roles)
    return read_student(earlier) if same else None


def _near(files: StudentFiles, prepared: Prepared, encoder: Reader, say: Say) -> Nearness | None:
    """Keep the training questions as vectors, and measure the held-out ones against them; None where it reads none."""
    known = known_questions(map(question_of, prepared.data.train), encoder)
    if known is None:
        say(f"the router will not know foreign questions: {encoder.id} cannot read those of the dataset")
        return None
    write_known(files.questions, known)
    cosines = nearness(map(question_of, prepared.data.held_out), known, encoder)
    return Nearness(encoder.id, len(known.vectors), cosines)
