"""What is known before training: the data, encoded, and the identity of what will be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from potstill.config import Config, DistillConfig, StudentConfig
from potstill.distill.data import Data, Rows, check_some, encode, read_data
from potstill.distill.rationales import check_rationales, training_rows
from potstill.distill.soft_targets import check_teacher
from potstill.errors import InputError
from potstill.records import content_id, text_sha
from potstill.student.base import base_sha, load_base, load_tokenizer, read_limits
from potstill.student.hub import Say, silent, tell
from potstill.student.manifest import StudentManifest
from potstill.student.template import control_tokens
from potstill.workspace import Workspace, checked_name

JUDGED_BY = ("margin", "near_duplicate", "max_new_tokens", "requests_a_day")
"""Settings of the verdict: changing one judges anew, and trains nothing."""
NOT_TRAINED = {
    "name": "where it is written",
    "checkpoint_steps": "a resumed run equals an undisturbed one",
    "tokens_per_batch": "a step's gradient is the same however it is split",
    "activation_checkpointing": "the same gradient in less memory",
    "compile": "the same step, faster",
    "report_to": "where it is also logged",
    "judge": "after training",
    "gate": "after the verdict",
} | dict.fromkeys(JUDGED_BY, "after training")
"""Keys of `distill` that the weights do not follow from, and why."""
NOT_WEIGHED = {
    "base": "its hash stands for it",
    "revision": "the base's hash stands for it",
    "device": "where it is trained",
}
"""The same for `student`."""


@dataclass(frozen=True)
class Prepared:
    """Everything that is known before training."""

    data: Data
    tokenizer: Any
    train: Rows
    validation: Rows
    base_sha: str
    plan_id: str
    load: Callable[[StudentConfig], Any] = load_base


def prepare(config: Config, workspace: Workspace, say: Say = silent) -> Prepared:
    """Read and encode the data; raises InputError or MachineError before anything is trained."""
    data = read_data(workspace, config.distill.near_duplicate)
    for name in (config.student.base, config.distill.soft_targets.teacher):
        if name is not None:
            tell(name, say)
    tokenizer = load_tokenizer(config.student)
    check_teacher(config.student, config.distill.soft_targets)
    sha = base_sha(config.student)
    plan = plan_id((sha, text_sha(tokenizer.chat_template)), data.sha, config.distill, config.student)
    train_rows = training_rows(tokenizer, data.train, config)
    check_rationales(train_rows, config)
    _check_roles(data, config.distill)
    check_some(train_rows, "every training sample", config.distill.max_length)
    _check_base(config, tokenizer, train_rows)
    validation_rows = encode(tokenizer, data.validation, config.distill.max_length)
    return Prepared(data, tokenizer, train_rows, validation_rows, sha, plan)


def _check_roles(data: Data, distill: DistillConfig) -> None:
    """Where each role gets an adapter of its own: raise UsageError for a name that is no folder's, InputError for nothing to learn."""
    if distill.adapters == "shared":
        return
    taught = {sample.role for sample in data.train}
    for role in data.roles:
        checked_name(role.name, "role")
        if role.name not in taught:
            message = f"role {role.name!r} has held-out samples, but none to train an adapter of its own on"
            raise InputError(message, hint="let it share one by --adapters shared, or generate more for it")


def _check_base(config: Config, tokenizer: Any, rows: Rows) -> None:
    """Raise InputError where the base has no row for a token that can come up, or does not look at as many."""
    vocabulary, context = read_limits(config.student)
    rowless = {token for token, number in tokenizer.get_vocab().items() if number >= vocabulary}
    written = {*tokenizer.convert_ids_to_tokens(sorted({*rows.rows[0]["input_ids"]}))}
    if found := sorted(rowless - (control_tokens(tokenizer) - written)):
        message = (
            f"{config.student.base!r} has no embedding for {found[0]!r}, a token of its tokenizer: {vocabulary} rows"
        )
        raise InputError(message, hint="take the tokenizer that belongs to these weights, or resize the embedding")
    longest = max(len(row["input_ids"]) for row in (*rows.rows, *rows.rationales.values()))
    if context is not None and longest > context:
        message = f"the longest sample has {longest} tokens, and {config.student.base!r} looks at {context}"
        raise InputError(message, hint=f"cut them by --set distill.max_length={context}, or choose another base")


def plan_id(
    base: tuple[str, str], dataset_sha: Mapping[str, str], distill: DistillConfig, student: StudentConfig
) -> str:
    """The identity of what is trained: base and its template (their hashes), data, and the settings that weights follow from."""
    return content_id(
        {
            "base": base,
            "data": dict(dataset_sha),
            "distill": distill.model_dump(mode="json", exclude=set(NOT_TRAINED)),
            "student": student.model_dump(mode="json", exclude=set(NOT_WEIGHED)),
        }
    )


def trained_plan(manifest: StudentManifest) -> str | None:
    """The identity of a finished student's plan, as of this release; None where its settings are none any more.

    It is made anew from the settings on the manifest, all of which stand there: a key that came later counts at its default,
    so it retrains nobody; a default that was changed since does.
    """
    try:
        distill = DistillConfig.model_validate(manifest.config["distill"])
        student = StudentConfig.model_validate(manifest.config["student"])
    except (KeyError, ValidationError):
        return None
    return plan_id((manifest.base_sha, manifest.template_sha), manifest.dataset_sha, distill, student)
