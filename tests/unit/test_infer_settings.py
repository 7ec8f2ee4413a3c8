"""What a router's constants are made of."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.routing import RoleStudent, config

from potstill.cli.infer_router import student_of
from potstill.cli.session import Session
from potstill.config import Resolved
from potstill.errors import InputError
from potstill.files import write_atomic
from potstill.infer.settings import make_settings
from potstill.student.manifest import ADAPTER_FILES, StudentManifest, StudentRole
from potstill.workspace import Workspace


class Clerk(RoleStudent):
    """A student of a role that has no file, and of one that has."""

    roles = ("clerk", "cost-analyst")


def trained(workspace: Workspace) -> None:
    """A student's manifest in a workspace."""
    roles = tuple(StudentRole(name=name, system=f"You are the {name}.") for name in Clerk.roles)
    manifest = StudentManifest(
        name="demo", base="", revision=None, base_sha="", template_sha="", adapters="shared", plan_id="", roles=roles,
        dataset_sha={}, config={}, versions={}, samples=0, supervised_tokens=0, train_seconds=0, created_at=datetime.now(UTC),
    )  # fmt: skip
    write_atomic(workspace.student(config().distill.name).manifest, manifest.model_dump_json())


def test_a_trained_role_needs_no_file(tmp_path: Path) -> None:
    """A role without a file speaks as the student was trained; a configured file of a role comes before that."""
    workspace, chosen = Workspace(tmp_path), config()
    with pytest.raises(InputError):
        make_settings(chosen, workspace, Clerk())
    trained(workspace)
    clerk, analyst = make_settings(chosen, workspace, Clerk()).roles
    assert clerk.system == "You are the clerk."
    assert analyst.system != "You are the cost-analyst."


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/v1"], ids=["local", "remote"])
@pytest.mark.parametrize("roles", [(), ("clerk",)], ids=["all", "named"])
def test_the_command_knows_the_trained_roles(tmp_path: Path, url: str | None, roles: tuple[str, ...]) -> None:
    """`infer` takes a trained role without a file from the student's manifest, whether it runs here or behind a URL."""
    chosen = config(roles=roles, student_url=url)
    session = Session("infer", Resolved(chosen.model_copy(update={"workspace": str(tmp_path)}), {}))
    trained(session.workspace)
    for name in ADAPTER_FILES:
        write_atomic(session.workspace.student(chosen.distill.name).adapter / name, "")
    student = student_of(session)
    assert student is not None
    assert set(student.roles) >= {"clerk"}
    assert make_settings(chosen, session.workspace, student).asked == (roles or Clerk.roles)
