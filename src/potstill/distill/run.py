"""The whole stage: dataset -> encode -> train -> judge -> a student's folder."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from potstill.config import Config, Secrets, StudentConfig
from potstill.distill.asking import Judged, answers, likelihood
from potstill.distill.card import card, lineage
from potstill.distill.data import Data, Rows, encode, read_data
from potstill.distill.effort import Effort, board_power, machine_counters
from potstill.distill.engine import cross_entropy
from potstill.distill.heldout import question_of
from potstill.distill.judge import Case, Evidence, own_agreement, verdict
from potstill.distill.on_policy import student_writes
from potstill.distill.processes import is_first_process, leave_group, training_cards
from potstill.distill.progress import Follow
from potstill.distill.rationales import check_rationales, training_rows
from potstill.distill.report import page, plot_loss
from potstill.distill.router import Nearness
from potstill.distill.similarity import measured
from potstill.distill.soft_targets import soft_objective
from potstill.distill.train import Job, train
from potstill.errors import KeyRefusedError, MachineError
from potstill.records import Evaluated, Sample, Verdict, content_id, text_sha
from potstill.student.base import base_sha, load_base, load_tokenizer
from potstill.student.familiar import Reader, known_questions, nearness, write_known
from potstill.student.local import LocalStudent, Persona, load_student
from potstill.student.machine import LOCAL_PACKAGES, installed
from potstill.student.manifest import Energy, StudentManifest, read_manifest
from potstill.workspace import StudentFiles, Workspace, write_atomic

Say = Callable[[str], None]
JUDGED_BY = ("margin", "near_duplicate", "max_new_tokens", "requests_a_day")
"""Settings of the verdict: changing one judges anew, and trains nothing."""


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before training."""

    data: Data
    tokenizer: Any
    train: Rows
    validation: Rows
    base_sha: str
    plan_id: str


@dataclass(frozen=True)
class Distilled:
    """A finished student; `fresh` is False where it had been finished before."""

    manifest: StudentManifest
    verdict: Verdict
    fresh: bool


def prepare(config: Config, workspace: Workspace) -> Prepared:
    """Read and encode the data; raises InputError or MachineError before anything is trained."""
    data = read_data(workspace, config.distill.near_duplicate)
    tokenizer = load_tokenizer(config.student)
    sha = base_sha(config.student)
    plan_id = content_id(
        {
            "base": sha,
            "template": text_sha(tokenizer.chat_template),
            "data": data.sha,
            "distill": config.distill.model_dump(mode="json", exclude={"gate", "report_to", "judge", *JUDGED_BY}),
            "student": config.student.model_dump(mode="json"),
        }
    )
    train_rows = training_rows(tokenizer, data.train, config)
    check_rationales(train_rows, config)
    validation_rows = encode(tokenizer, data.validation, config.distill.max_length)
    return Prepared(data, tokenizer, train_rows, validation_rows, sha, plan_id)


def distill(
    config: Config,
    workspace: Workspace,
    say: Say,
    follow: Follow,
    secrets: Secrets | None = None,
    reader: Callable[[], Reader] | None = None,
) -> Distilled | None:
    """Train and judge a student; one that is finished under the same plan is left as it is.

    None in the further processes of a launcher, which only help with training. `secrets` holds the teacher's key,
    needed only where `distill.judge.max_usd` lets the teacher judge. `reader` loads the encoder by which the router will
    tell foreign questions, and the verdict how near in meaning two answers are.
    """
    files = workspace.student(config.distill.name)
    prepared = prepare(config, workspace)
    trained = files.manifest.is_file() and read_manifest(files).plan_id == prepared.plan_id
    if not is_first_process(config.student):
        if not trained:
            _train_all(config, files, prepared, follow)
        leave_group()
        return None
    judging = config.distill.judge.max_usd is not None
    if trained and files.verdict.is_file():
        known = Verdict.model_validate_json(files.verdict.read_text("utf-8"))
        if known.evaluation_id == _evaluation_id(config) and (known.duel is not None or not judging):
            leave_group()
            return Distilled(read_manifest(files), known, fresh=False)
    if judging and (secrets is None or secrets.teacher_key is None):
        message = "distill.judge.max_usd is set, but there is no API key: set GEMINI_API_KEY in the environment"
        raise KeyRefusedError(message)
    data, limit = prepared.data, config.distill.max_new_tokens
    say(
        f"{len(prepared.train.rows)} samples, {prepared.train.supervised} of {prepared.train.tokens} tokens are learned"
    )
    say(f"the base answers {len(data.held_out)} held-out questions, before training")
    base = _untrained(config.student, data, prepared)
    before = answers(base, data.held_out, limit)
    costs = likelihood(base, data.held_out, config.distill.max_length)
    del base  # its memory is needed for training
    manifest = read_manifest(files) if trained else _train(config, files, prepared, follow)
    say("the student answers the same questions, after training")
    student = load_student(files, config.student)
    after = answers(student, data.held_out, limit)
    trained_costs = likelihood(student, data.held_out, config.distill.max_length)
    del student
    evidence = Evidence(
        before,
        after,
        near_duplicates=len(data.leaks),
        ceiling=own_agreement([*data.train, *data.validation, *data.test]),
        nll={name: (costs[name], trained_costs[name]) for name in costs},
    )
    evidence = _judged(config, workspace, secrets, _read(evidence, files, data, reader, say), say)
    found = verdict(_case(config, data), evidence, datetime.now(UTC))
    found = found.model_copy(update={"evaluation_id": _evaluation_id(config)})
    _write(files, manifest, found, evidence)
    shutil.rmtree(files.checkpoints, ignore_errors=True)
    files.effort.unlink(missing_ok=True)
    return Distilled(manifest, found, fresh=True)


def _evaluation_id(config: Config) -> str:
    return content_id(config.distill.model_dump(mode="json", include=set(JUDGED_BY)))


def _train(config: Config, files: StudentFiles, prepared: Prepared, follow: Follow) -> StudentManifest:
    """Train, and mark the adapters as finished by the manifest; a run that is cut off later need not train again."""
    cards = training_cards(config.student)
    with Effort(files.effort, prepared.plan_id, machine_counters(cards)) as effort:
        log = _train_all(config, files, prepared, follow)
    plot_loss(log, files.loss_plot)
    manifest = _manifest(config, prepared, effort.seconds, effort.energy(board_power(cards)))
    write_atomic(files.manifest, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _read(
    evidence: Evidence, files: StudentFiles, data: Data, reader: Callable[[], Reader] | None, say: Say
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
    evidence = replace(evidence, near=_near(files, data, encoder, say))
    if encoder.id.startswith("hashing"):
        return replace(evidence, encoder="not measured: the encoder hashing reads spelling alone")
    before, after = measured(evidence.before, encoder), measured(evidence.after, encoder)
    return replace(evidence, before=before, after=after, encoder=encoder.id)


def _judged(config: Config, workspace: Workspace, secrets: Secrets | None, evidence: Evidence, say: Say) -> Evidence:
    """Let the teacher judge the answers, where it has a budget for that."""
    if config.distill.judge.max_usd is None:
        return evidence
    from potstill.distill.duel import judge_by_teacher

    say(f"the teacher judges the answers, for at most ${config.distill.judge.max_usd:f}")
    found = asyncio.run(judge_by_teacher(config, secrets or Secrets(), workspace, evidence.after))
    if found.stopped:
        say(f"judging stopped early: {found.stopped}")
    ceiling = found.ceiling or evidence.ceiling
    return replace(evidence, after=found.judged, duel=found.duel, ceiling=ceiling)


def _near(files: StudentFiles, data: Data, encoder: Reader, say: Say) -> Nearness | None:
    """Keep the training questions as vectors, and measure the held-out ones against them; None where it reads none."""
    known = known_questions(map(question_of, data.train), encoder)
    if known is None:
        say(f"the router will not know foreign questions: {encoder.id} cannot read those of the dataset")
        return None
    write_known(files.questions, known)
    cosines = nearness(map(question_of, data.held_out), known, encoder)
    return Nearness(encoder.id, len(known.vectors), cosines)


def _train_all(config: Config, files: StudentFiles, prepared: Prepared, follow: Follow) -> list[dict[str, float]]:
    """One adapter for all roles, or one each; gives the log of the last."""
    log: list[dict[str, float]] = []
    for job in _jobs(config, files, prepared):
        log = train(config.student, job, follow)
    leave_group()
    return log


def _jobs(config: Config, files: StudentFiles, prepared: Prepared) -> Iterator[Job]:
    plan_id, soft = prepared.plan_id, config.distill.soft_targets
    objective = cross_entropy if soft.teacher is None else soft_objective(config.student, soft)
    refresh = student_writes(config.student, config.distill) if soft.on_policy else None
    if config.distill.adapters == "shared":
        rows = prepared.train, prepared.validation
        yield Job(config.distill, *rows, files.checkpoints, files.adapter, plan_id, objective, refresh=refresh)
        return
    for role in prepared.data.roles:
        folder, adapter = files.checkpoints / role.name, files.role_adapter(role.name)
        rows = _rows_of(role.name, config, prepared)
        yield Job(config.distill, *rows, folder, adapter, plan_id, objective, refresh=refresh)


def _rows_of(role: str, config: Config, prepared: Prepared) -> tuple[Rows, Rows]:
    """Training and validation rows of one role."""
    data, length = prepared.data, config.distill.max_length
    own, held_out = ([each for each in split if each.role == role] for split in (data.train, data.validation))
    return training_rows(prepared.tokenizer, own, config), encode(prepared.tokenizer, held_out, length)


def _untrained(config: StudentConfig, data: Data, prepared: Prepared) -> LocalStudent:
    """The base as if it were a student: what it can do without any training."""
    model = load_base(config)
    model.eval()
    return LocalStudent(Persona("base", data.roles), model, prepared.tokenizer, prepared.base_sha)


def _manifest(config: Config, prepared: Prepared, seconds: float, energy: Energy | None) -> StudentManifest:
    packages = installed(LOCAL_PACKAGES)
    return StudentManifest(
        name=config.distill.name,
        base=config.student.base,
        revision=config.student.revision,
        base_sha=prepared.base_sha,
        template_sha=text_sha(prepared.tokenizer.chat_template),
        roles=prepared.data.roles,
        adapters=config.distill.adapters,
        plan_id=prepared.plan_id,
        dataset_sha=prepared.data.sha,
        config=config.model_dump(mode="json", include={"student", "distill"}),
        versions={name: packages[name] or "" for name in LOCAL_PACKAGES},
        samples=len(prepared.train.rows),
        supervised_tokens=prepared.train.supervised,
        train_seconds=round(seconds, 1),
        created_at=datetime.now(UTC),
        energy=energy,
    )


def _case(config: Config, data: Data) -> Case:
    everything: list[Sample] = [*data.train, *data.validation, *data.test]
    paid = sum((sample.cost_usd for sample in everything), Decimal(0))
    return Case(
        student=config.distill.name,
        base=config.student.base,
        teacher_model=everything[0].model,
        margin=config.distill.margin,
        paid_usd=paid,
        teacher_usd_per_request=paid / len(everything),
        requests_a_day=config.distill.requests_a_day,
    )


def _write(files: StudentFiles, manifest: StudentManifest, found: Verdict, evidence: Evidence) -> None:
    """Write what a reader sees; the verdict last, because it marks the student as finished."""
    good = (_evaluated(item, found.margin) for item in evidence.after)
    write_atomic(files.evaluation, "".join(row.to_line() for row in good))
    write_atomic(files.card, card(manifest, found))
    write_atomic(files.report, page(found, evidence, files.loss_plot, lineage(manifest, found)))
    write_atomic(files.verdict, found.model_dump_json(indent=2) + "\n")


def _evaluated(item: Judged, margin: float) -> Evaluated:
    return Evaluated(
        prompt_id=item.sample.prompt_id,
        role=item.sample.role,
        question=item.question,
        reference=item.reference,
        answer=item.answer.text,
        score=item.score,
        good=item.good(margin),
    )
