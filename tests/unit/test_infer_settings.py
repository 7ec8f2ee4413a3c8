"""What a router's constants are made of."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.routing import RoleStudent, config

from potstill.errors import InputError
from potstill.infer.settings import make_settings
from potstill.student.manifest import StudentManifest, StudentRole
from potstill.workspace import Workspace, write_atomic


class Clerk(RoleStudent):
    """A student of a role that has no file, and of one that has."""

    roles = ("clerk", "cost-analyst")


def test_a_trained_role_needs_no_file(tmp_path: Path) -> None:
    """A role without a file speaks as the student was trained; a configured file of a role comes before that."""
    workspace, chosen = Workspace(tmp_path), config()
    with pytest.raises(InputError):
        make_settings(chosen, workspace, Clerk())
    trained = tuple(StudentRole(name=name, system=f"You are the {name}.") for name in Clerk.roles)
    manifest = StudentManifest(
        name="demo", base="", revision=None, base_sha="", template_sha="", adapters="shared", plan_id="", roles=trained,
        dataset_sha={}, config={}, versions={}, samples=0, supervised_tokens=0, train_seconds=0, created_at=datetime.now(UTC),
    )  # fmt: skip
    write_atomic(workspace.student(chosen.distill.name).manifest, manifest.model_dump_json())
    clerk, analyst = make_settings(chosen, workspace, Clerk()).roles
    assert clerk.system == "You are the clerk."
    assert analyst.system != "You are the cost-analyst."
