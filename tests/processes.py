"""Two processes of one group over gloo, without a launcher: forked from a server that has loaded torch once."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from potstill.errors import PotstillError

WORLD = 2


def together(work: Callable[..., Any], *arguments: Any, **variables: str) -> dict[int, Any]:
    """What `work(*arguments)` gives in each of two processes, by rank: its result, or the expected error that ended it.

    Where one ends in an error, the other may wait for it for ever, and is ended. `variables`: what a launcher would set.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "matplotlib.pyplot", "potstill.distill.run"])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(WORLD), **variables}
    ends = context.Queue()
    processes = [context.Process(target=_run, args=(ends, rank, group, work, arguments)) for rank in range(WORLD)]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    while len(found) < WORLD and not any(isinstance(end, PotstillError) for end in found.values()):
        rank, end = ends.get(timeout=240)
        found[rank] = end
    for process in processes:
        if len(found) < WORLD:
            process.kill()
        process.join()
    return found


def _run(ends: Any, rank: int, group: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ.update({**group, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(WORLD)})
    torch.set_num_threads(1)
    try:
        ends.put((rank, work(*arguments)))
    except PotstillError as error:
        ends.put((rank, error))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
