"""A server that cannot start."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.config import ServeConfig
from potstill.errors import MachineError
from potstill.serve.server import listen, run


async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application whose start-up fails."""
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


async def test_a_failed_start_is_no_success() -> None:
    """Where the application does not come up, nothing is announced and the command does not end in 0."""
    announced: list[bool] = []
    with listen("127.0.0.1", 0) as listener, pytest.raises(MachineError):
        await run(broken, ServeConfig(), listener, lambda: announced.append(True))
    assert not announced
