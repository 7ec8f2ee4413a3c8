"""A chat of `potstill infer`: each line a turn, and each turn asked together with those before it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from potstill.cli.infer_router import router_of
from potstill.cli.infer_screen import Screen, on_screen, tell
from potstill.cli.session import Session
from potstill.errors import PotstillError
from potstill.records import Message

if TYPE_CHECKING:
    from potstill.infer.router import Router
    from potstill.infer.work import RouterAnswer


def hold_chat(session: Session, *, trace: bool) -> None:
    """Answer line after line until the input ends. On a terminal a turn that fails is told, and the chat goes on.

    Lines are read while no event loop runs: Ctrl-C then ends the reading at once.
    """
    history: list[Message] = []
    turns: list[dict[str, Any]] = []
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            router = runner.run(stack.enter_async_context(router_of(session)))
            for line in _lines():
                try:
                    answer = runner.run(_turn(session, router, line, history))
                except PotstillError as error:
                    if not sys.stdin.isatty():
                        raise
                    session.complain(error)
                    continue
                history += [Message(role="user", content=line), Message(role="assistant", content=answer.text)]
                turns.append({"question": line, "answer": answer.text, "trace": answer.trace.model_dump(mode="json")})
                tell(session, answer.trace, whole=trace)
        finally:
            runner.run(stack.aclose())
    if session.as_json:
        session.show({"turns": turns}, "")


async def _turn(session: Session, router: Router, line: str, history: list[Message]) -> RouterAnswer:
    await asyncio.sleep(0)  # what came while no loop ran, such as the end of an idle connection, is seen first
    with Screen(session) as screen:
        answer = await router.answer(line, history=tuple(history), tell=screen.tell)
    if not session.as_json and not screen.finish(answer.text):
        session.show({}, on_screen(answer.text))
    return answer


def _lines() -> Iterator[str]:
    """What is typed or piped in, without empty lines; on a terminal with history and editing."""
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed:
        with suppress(ImportError):  # not every Python has it
            import readline  # noqa: F401  (`input` uses it)
    elif sys.stdin.isatty():
        sys.stderr.write("end with Ctrl-D\n")
    with suppress(EOFError):
        while line := input("> ") + "\n" if typed else sys.stdin.readline():
            if line.strip():
                yield line.strip()
    if typed:
        sys.stdout.write("\n")
