"""The router of `potstill infer`, and the student behind it: neither is loaded before it is needed."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from potstill.cli.session import Session, quiet_libraries

if TYPE_CHECKING:
    from potstill.infer.router import Router
    from potstill.infer.settings import Settings
    from potstill.student.answers import Student
    from potstill.workspace import StudentFiles


def router_of(session: Session) -> AbstractAsyncContextManager[Router]:
    """The router over what the config names."""
    from potstill.infer.router import open_router

    return open_router(session.config, session.secrets, session.workspace, student_of(session))


def plan(session: Session) -> None:
    """Answer --dry-run: the way that a question would take."""
    from potstill.infer.settings import make_settings

    student = student_of(session)
    settings = make_settings(session.config, session.workspace, student)
    who = f"student {student.name!r} as {', '.join(settings.asked)}" if student else "no student"
    text = (
        f"exact match, then near questions ({_nearness(settings)}) with {session.config.cache.encoder}, then {who}, "
        f"then {session.config.teacher.model}: {settings.policy.reason}"
    )
    session.show_plan({"scope": settings.scope.id, "decide": settings.policy.mode, "student": bool(student)}, text)


def _nearness(settings: Settings) -> str:
    """When a near question is a hit, as far as it is known before the encoder is loaded."""
    from potstill.infer.rule import SAFE_COSINE

    if (threshold := settings.config.cache.threshold) is not None:
        return f"cosine >= {threshold:g}, no bound on wrong hits"
    if settings.calibration is not None:
        return settings.calibration.reason
    return f"cosine >= {SAFE_COSINE:g}, not calibrated"


def student_of(session: Session) -> Student | None:
    """The student of the config, not yet loaded; None where none is trained."""
    from potstill.infer.panel import LazyStudent
    from potstill.student.manifest import fingerprint_on_disk, read_manifest

    config = session.config
    files = session.workspace.student(config.distill.name)
    if config.infer.student_url is not None:
        return _remote(session, config.infer.student_url, files)
    if not files.manifest.is_file():
        return None

    def load() -> Student:
        from potstill.student.local import load_student

        quiet_libraries(session)
        return load_student(files, config.student, session.say)

    roles = tuple(role.name for role in read_manifest(files).roles)
    return LazyStudent(config.distill.name, roles, fingerprint_on_disk(files), load)


def _remote(session: Session, url: str, files: StudentFiles) -> Student:
    """The student of a server. Its system prompts: as it was trained on them, where it was trained here, else the files'."""
    from potstill.infer.settings import named_roles
    from potstill.student.manifest import read_manifest
    from potstill.student.remote import RemoteStudent

    config, key = session.config, session.secrets.student_key
    trained = read_manifest(files).roles if files.manifest.is_file() else ()
    systems = {role.name: role.system for role in trained}
    names = config.infer.roles or tuple(systems) or config.generate.roles
    chosen = named_roles(config, names, trained)
    secret = None if key is None else key.get_secret_value()
    prompts = {role.name: systems.get(role.name, role.system) for role in chosen}
    return RemoteStudent(url, prompts, secret, config.infer.student_timeout_s)
