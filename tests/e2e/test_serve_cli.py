"""`potstill serve-local` as installed: what it refuses."""

from __future__ import annotations

import socket

from tests.conftest import Run


def test_refuses_beyond_loopback_without_key(potstill: Run) -> None:
    """Without an API key it does not listen for other machines."""
    done = potstill("serve-local", "--host", "0.0.0.0")
    assert done.returncode == 2
    assert "POTSTILL_SERVE_API_KEYS" in done.stderr


def test_missing_student(potstill: Run) -> None:
    """Without a student it says how to train one."""
    done = potstill("serve-local")
    assert done.returncode == 2
    assert "potstill distill" in done.stderr


def test_port_in_use_is_the_machines_fault() -> None:
    """A busy port is a MachineError (exit code 7) with a hint."""
    import pytest

    from potstill.errors import MachineError
    from potstill.serve.server import listen

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MachineError) as caught:
        listen("127.0.0.1", taken.getsockname()[1])
    assert "--port" in caught.value.hint
