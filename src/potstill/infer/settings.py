"""What stays the same for every question of a router: roles, policy, cache scope, templates, prices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from potstill.config import Config
from potstill.errors import UsageError
from potstill.infer.calibrating import calibration_files, read_calibration
from potstill.infer.calibration import Calibration
from potstill.infer.decide import SCHEMAS, Decision, Policy, policy
from potstill.infer.key import Scope
from potstill.infer.panel import read_verdict
from potstill.pricing.book import PriceBook, load_prices
from potstill.prompts import Role, load_roles, load_template
from potstill.records import text_sha
from potstill.student.answers import Student
from potstill.student.manifest import StudentRole, read_manifest
from potstill.workspace import Workspace

TEMPERATURE = 0.0
"""Gemini's temperature here: a cached answer stands for many askers, so it is the likeliest, not a drawn one."""


@dataclass(frozen=True)
class Settings:
    """A router's constants. The first of `roles` is Gemini's persona when it answers alone.

    `questions` holds what the student was taught, as vectors.
    """

    config: Config
    policy: Policy
    roles: tuple[Role, ...]
    scope: Scope
    templates: dict[Decision, str]
    book: PriceBook
    questions: Path
    calibration: Calibration | None = None

    @property
    def role(self) -> Role:
        """Gemini's persona when it answers alone."""
        return self.roles[0]

    @property
    def asked(self) -> tuple[str, ...]:
        """The student's roles that answer."""
        return tuple(role.name for role in self.roles)


def make_settings(config: Config, workspace: Workspace, student: Student | None) -> Settings:
    """Resolve a config; raises UsageError, InputError or UnknownModelError where roles, student or prices are wrong."""
    files = workspace.student(config.distill.name)
    trained = read_manifest(files).roles if student is not None and files.manifest.is_file() else ()
    roles = chosen_roles(config, student, trained)
    verdict = read_verdict(files) if student is not None else None
    decided = policy(config.infer.decide, verdict.router if verdict else None)
    templates = {name: load_template(name, config.language) for name in SCHEMAS}
    book = load_prices(config.prices)
    book.price(config.teacher.model, config.teacher.service, datetime.now(UTC).date())
    scope = Scope(
        namespace=config.cache.namespace,
        language=config.language,
        roles=tuple((role.name, role.sha) for role in roles),
        student=student.fingerprint if student else None,
        student_max_new_tokens=config.infer.max_new_tokens,
        student_threshold=decided.threshold,
        student_least_cosine=decided.familiar.least_cosine if decided.familiar else None,
        teacher_model=config.teacher.model,
        teacher_url=config.teacher.base_url,
        thinking_budget=config.teacher.thinking_budget,
        temperature=TEMPERATURE,
        max_output_tokens=config.generate.max_output_tokens,
        decide=decided.mode,
        decision=config.infer.decision,
        templates=text_sha("\0".join(templates.values())),
    )
    calibration = read_calibration(calibration_files(config.cache, workspace).json)
    return Settings(config, decided, roles, scope, templates, book, files.questions, calibration)


def named_roles(config: Config, names: Sequence[str], trained: Sequence[StudentRole]) -> tuple[Role, ...]:
    """The personas of these names: the role in `generate.roles`, before one that the student was trained on, before a shipped one.

    Raises InputError for a name of which neither is known.
    """
    known = {role.name: role for role in load_roles(config.generate.roles, config.language)}
    for role in trained:
        known.setdefault(role.name, Role(name=role.name, language=config.language, system=role.system))
    return tuple(known.get(name) or load_roles([name], config.language)[0] for name in names)


def chosen_roles(config: Config, student: Student | None, trained: Sequence[StudentRole]) -> tuple[Role, ...]:
    """The personas behind the answers: `infer.roles`, else the student's, else the first one of `generate.roles`.

    Raises UsageError where the student was not trained on one of them; InputError as `named_roles` does.
    """
    if student is None and not config.infer.roles:
        return load_roles(config.generate.roles, config.language)[:1]
    roles = named_roles(config, config.infer.roles or (student.roles if student else ()), trained)
    if student is not None and (missing := [role.name for role in roles if role.name not in student.roles]):
        message = f"infer.roles: student {student.name!r} was not trained on {', '.join(missing)}"
        raise UsageError(message, hint=f"it knows {', '.join(student.roles)}")
    return roles
