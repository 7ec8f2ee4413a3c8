"""The whole stage: dataset -> encode -> train -> judge -> a student's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple

from potstill.config import Config, Secrets
from potstill.distill.alone import alone
from potstill.distill.asking import Judged
from potstill.distill.card import card, lineage
from potstill.distill.data import Data, Rows, check_some, encode
from potstill.distill.effort import Effort, board_power, machine_counters
from potstill.distill.engine import cross_entropy
from potstill.distill.judge import Case, Evidence, verdict
from potstill.distill.measure import MakeReader, Say, judged_by_teacher, measure, read_by_encoder
from potstill.distill.on_policy import student_writes
from potstill.distill.prepare import JUDGED_BY, Prepared, prepare, trained_plan
from potstill.distill.processes import is_first_process, leave_group, training_cards, wait_for_all
from potstill.distill.progress import Follow
from potstill.distill.rationales import training_rows
from potstill.distill.report import page, plot_loss
from potstill.distill.resume import drop_checkpoints
from potstill.distill.sharding import load_sharded, wants_sharding
from potstill.distill.soft_targets import soft_objective
from potstill.distill.train import Job, train
from potstill.errors import KeyRefusedError
from potstill.files import write_atomic
from potstill.records import Evaluated, Sample, Verdict, content_id, text_sha
from potstill.student.hub import silent
from potstill.student.machine import LOCAL_PACKAGES, installed
from potstill.student.manifest import Energy, StudentManifest, adapter_folders, read_manifest
from potstill.workspace import StudentFiles, Workspace


class Told(NamedTuple):
    """Who hears of what happens, and of the steps of training."""

    say: Say
    follow: Follow


@dataclass(frozen=True)
class Distilled:
    """A finished student; `fresh` is False where it had been finished before."""

    manifest: StudentManifest
    verdict: Verdict
    fresh: bool


def distill(
    config: Config,
    workspace: Workspace,
    say: Say,
    follow: Follow,
    secrets: Secrets | None = None,
    reader: MakeReader | None = None,
) -> Distilled | None:
    """Train and judge a student; one that is finished under the same plan is left as it is.

    None in the further processes of a launcher, which only help with training. `secrets` holds the teacher's key,
    needed only where `distill.judge.max_usd` lets the teacher judge. `reader` loads the encoder by which the router will
    tell foreign questions, and the verdict how near in meaning two answers are.
    """
    files = workspace.student(config.distill.name)
    prepared = prepare(config, workspace, say)
    if wants_sharding(config):
        prepared = replace(prepared, load=load_sharded)
    with alone(files, say) if is_first_process(config.student) else nullcontext():
        wait_for_all()  # what stands there is looked at once nobody else is at work on it
        return _distilled(config, workspace, prepared, Told(say, follow), secrets, reader)


def _distilled(
    config: Config,
    workspace: Workspace,
    prepared: Prepared,
    told: Told,
    secrets: Secrets | None,
    reader: MakeReader | None,
) -> Distilled | None:
    """What is left to be done of training and judging."""
    files, say, follow = workspace.student(config.distill.name), told.say, told.follow
    sharded = prepared.load is load_sharded
    manifest = _trained_before(files, prepared)
    known = None if manifest is None else _judged_before(config, files)
    if not is_first_process(config.student):
        if manifest is None:
            _train_adapters(config, files, prepared, follow)
        if sharded and known is None:
            _measured(config, files, prepared, silent, together=True)
        leave_group()
        return None
    if known is None:
        _check_key(config, secrets)
    if manifest is None:
        manifest = _train(config, files, prepared, follow, say)
    if known is not None:
        leave_group()
        _tidy(files, prepared.plan_id)
        return Distilled(manifest, known, fresh=False)
    evidence = _measured(config, files, prepared, say, together=sharded)
    evidence = read_by_encoder(evidence, files, prepared, reader, say)
    evidence = judged_by_teacher(evidence, config, workspace, prepared.plan_id, secrets, say)
    found = verdict(_case(config, prepared.data), evidence, datetime.now(UTC))
    found = found.model_copy(update={"evaluation_id": _evaluation_id(config)})
    _write(files, manifest, found, evidence)
    _tidy(files, prepared.plan_id)
    return Distilled(manifest, found, fresh=True)


def _trained_before(files: StudentFiles, prepared: Prepared) -> StudentManifest | None:
    """The manifest of a student that was trained under this very plan; None where there is none."""
    manifest = read_manifest(files) if files.manifest.is_file() else None
    return manifest if manifest is not None and trained_plan(manifest) == prepared.plan_id else None


def _judged_before(config: Config, files: StudentFiles) -> Verdict | None:
    """The verdict, where there is one by the same settings, and by the teacher where it is to judge."""
    if not files.verdict.is_file():
        return None
    try:
        known = Verdict.model_validate_json(files.verdict.read_text("utf-8"))
    except ValueError:  # damaged, or another release's: judging makes it anew
        return None
    judged = known.duel is not None or config.distill.judge.max_usd is None
    return known if judged and known.evaluation_id == _evaluation_id(config) else None


def _evaluation_id(config: Config) -> str:
    return content_id(config.distill.model_dump(mode="json", include=set(JUDGED_BY)))


def _check_key(config: Config, secrets: Secrets | None) -> None:
    """Raise KeyRefusedError, before anything is trained, where the teacher is to judge and has no key."""
    if config.distill.judge.max_usd is not None and (secrets is None or secrets.teacher_key is None):
        message = "distill.judge.max_usd is set, but there is no API key: set GEMINI_API_KEY in the environment"
        raise KeyRefusedError(message)


def _train(config: Config, files: StudentFiles, prepared: Prepared, follow: Follow, say: Say) -> StudentManifest:
    """Train, and mark the adapters as finished by the manifest; a run that is cut off later need not train again.

    Until all of them are trained, the student that stood here answers as before.
    """
    rows = prepared.train
    say(f"{len(rows.rows)} samples, {rows.supervised} of {rows.tokens} tokens are learned")
    _set_aside(files)
    cards = training_cards(config.student)
    with Effort(files.effort, prepared.plan_id, machine_counters(cards)) as effort:
        log = _train_adapters(config, files, prepared, follow)
    if effort.failed:
        say(f"the electricity of training is not measured, its counter failed: {effort.failed}")
    plot_loss(log, files.loss_plot)
    manifest = _manifest(config, prepared, effort.seconds, effort.energy(board_power(cards)))
    _put_in_place(files, manifest)
    return manifest


def _put_in_place(files: StudentFiles, manifest: StudentManifest) -> None:
    """Let the trained adapters take the places of those before them, all at once as far as a reader can tell.

    Without its manifest a folder holds no student: whatever a kill leaves here, nothing reads new adapters beside the
    roles or the verdict of the old ones, and the same command does all of this again. What was exported goes with the old.
    """
    if files.export.is_dir() and files.earlier.root.is_dir():
        shutil.rmtree(files.earlier.export, ignore_errors=True)
        files.export.rename(files.earlier.export)
    files.manifest.unlink(missing_ok=True)
    files.verdict.unlink(missing_ok=True)
    for new, place in ((files.trained.adapter, files.adapter), (files.trained.adapters, files.adapters)):
        shutil.rmtree(place, ignore_errors=True)
        if new.is_dir():
            new.rename(place)
    write_atomic(files.manifest, manifest.model_dump_json(indent=2) + "\n")


def _measured(config: Config, files: StudentFiles, prepared: Prepared, say: Say, *, together: bool) -> Evidence:
    """What the base and the student answer: to the first process alone, or, since none can run a shared layer alone, to all."""
    if together:
        wait_for_all()  # the first one puts the adapters in place
    else:
        leave_group()  # before anything that the further processes would have to wait for
    evidence = measure(config, files, prepared, say)
    leave_group()
    return evidence


def _set_aside(files: StudentFiles) -> None:
    """Keep a finished student that will give way, in one move: to compare the new one with it, and to go back to it."""
    earlier = files.earlier.manifest
    if not files.manifest.is_file() or (
        earlier.is_file() and earlier.read_bytes() == files.manifest.read_bytes()
    ):  # none, or kept by a run that was cut off since
        return
    new = files.root / "earlier.new"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(
        files.root,
        new,
        ignore=shutil.ignore_patterns("checkpoints", "effort.json", "export", "earlier*", f"{files.distilling.name}*"),
    )
    shutil.rmtree(files.earlier.root, ignore_errors=True)
    new.rename(files.earlier.root)


def _train_adapters(config: Config, files: StudentFiles, prepared: Prepared, follow: Follow) -> list[dict[str, float]]:
    """One adapter for all roles, or one each; gives the log of the last."""
    log: list[dict[str, float]] = []
    for job in _jobs(config, files, prepared):
        log = train(config.student, job, follow)
    return log


def _jobs(config: Config, files: StudentFiles, prepared: Prepared) -> Iterator[Job]:
    plan_id, soft = prepared.plan_id, config.distill.soft_targets
    objective = cross_entropy if soft.teacher is None else soft_objective(config.student, soft)
    refresh = student_writes(config.student, config.distill) if soft.on_policy else None
    if config.distill.adapters == "shared":
        rows = prepared.train, prepared.validation
        where = (files.checkpoints, files.trained.adapter)
        yield Job(config.distill, *rows, *where, plan_id, objective, refresh=refresh, load=prepared.load)
        return
    for role, adapter in adapter_folders(files.trained, "per-role", prepared.data.roles).items():
        rows = _rows_of(role, config, prepared)
        where = (files.checkpoints / role, adapter)
        yield Job(config.distill, *rows, *where, plan_id, objective, refresh=refresh, load=prepared.load)


def _rows_of(role: str, config: Config, prepared: Prepared) -> tuple[Rows, Rows]:
    """Training and validation rows of one role."""
    data, length = prepared.data, config.distill.max_length
    own, held_out = ([each for each in split if each.role == role] for split in (data.train, data.validation))
    rows = training_rows(prepared.tokenizer, own, config)
    check_some(rows, f"every training sample of role {role!r}", length)
    return rows, encode(prepared.tokenizer, held_out, length)


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
    """Write what a reader sees, the verdict last, because it marks the student as finished."""
    good = (_evaluated(item, found.margin) for item in evidence.after)
    write_atomic(files.evaluation, "".join(row.to_line() for row in good))
    write_atomic(files.card, card(manifest, found))
    write_atomic(files.report, page(found, evidence, files.loss_plot, lineage(manifest, found)))
    write_atomic(files.verdict, found.model_dump_json(indent=2) + "\n")


def _tidy(files: StudentFiles, plan_id: str) -> None:
    """Drop what led to a finished student, also where a kill came between its verdict and this."""
    if drop_checkpoints(files.checkpoints, plan_id):
        files.effort.unlink(missing_ok=True)


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
