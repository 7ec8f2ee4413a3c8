"""Roles that change while requests run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from tests.contract.test_serve_openai import ADMIN, KEY, Running, Scripted

from potstill.config import ServeLimits
from potstill.serve.access import Keys
from potstill.serve.app import Parts


class Droppable(Scripted):
    """A student whose roles may go."""

    def drop(self, role: str) -> None:
        """Answer as this role no longer."""
        self.roles = tuple(each for each in self.roles if each != role)


def test_two_roles_that_go_at_once_leave_one(tmp_path: Path) -> None:
    """Both are asked for while the student is busy: the first one goes, and the other is the last one then, which stays."""
    student = Droppable()
    parts = Parts(Keys((KEY,), (ADMIN,)), read_student=lambda _: lambda _: None)
    server = Running(tmp_path, ServeLimits(), parts, student)
    roles = student.roles
    with ThreadPoolExecutor(3) as pool, server.client() as client:
        held = [{"role": "user", "content": "hold"}]
        answer = pool.submit(client.chat.completions.create, model=roles[0], messages=held)
        assert student.started.wait(20)
        url, headers = f"{server.url}/v1/roles", {"Authorization": f"Bearer {ADMIN}"}
        going = [pool.submit(httpx.delete, f"{url}/{role}", headers=headers, timeout=20) for role in roles]
        time.sleep(0.5)  # both have come
        student.released.set()
        statuses = sorted(each.result().status_code for each in going)
        assert answer.result(20).choices
    server.stop()
    assert statuses == [200, 409]
    assert len(student.roles) == 1
