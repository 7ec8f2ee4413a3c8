"""A student behind an OpenAI-shaped URL: vLLM, Ollama, llama.cpp, or another `serve-local`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from potstill.errors import ConfigError, InputError, KeyRefusedError, MachineError, PotstillError
from potstill.records import content_id
from potstill.student.answers import Piece, StudentAnswer, StudentQuery

SHAPE_HINT = "is infer.student_url an OpenAI-compatible server, and does it end in /v1?"
KEY_HINT = "put the server's key into POTSTILL_STUDENT_API_KEY"
CONNECTIONS = 32
"""Requests in flight at once, of all questions together."""
BUSY = frozenset({429, 503})
"""What a server says that is there but full."""
BUSY_WAIT_S = 1.0
"""Before a busy server is asked again, where it does not say when."""
LEAST_WAIT_S = 0.1
"""What is waited at least, doubled each time: a server that says 0 while it is full is not stormed."""


class RemoteStudent:
    """Implements `answers.Student` and `answers.Remote` over the official openai client; a role is a model name of the server.

    Every request brings its role's system prompt from `systems`: vLLM knows none, and potstill's own server takes it
    in place of an equal one. `timeout_s` bounds an answer, the waits for a busy server included.
    """

    def __init__(self, url: str, systems: Mapping[str, str], key: str | None, timeout_s: float) -> None:
        """Nothing is sent yet; raises ConfigError for a URL that is none, MachineError without the openai client."""
        _check(url)
        if find_spec("openai") is None:
            message = "infer.student_url needs the openai client"
            raise MachineError(message, hint="pip install 'potstill[openai]'")
        self.name = url
        self.roles = tuple(systems)
        self.fingerprint = content_id({"url": url, "systems": dict(systems)})
        self._systems = dict(systems)
        self._key = key
        self._timeout_s = timeout_s
        self._opened: tuple[Any, asyncio.Semaphore] | None = None

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Ask for all answers at once, from where no event loop runs; raises as `ask` does. Threads may ask side by side."""
        apart = RemoteStudent(self.name, self._systems, self._key, self._timeout_s)  # connections belong to one loop

        async def once() -> list[StudentAnswer]:
            try:
                return await apart.ask(queries)
            finally:
                await apart.close()

        return asyncio.run(once())

    async def ask(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Ask for all answers at once; with those of other calls, at most CONNECTIONS requests are under way.

        Where one fails, or the call is cancelled, the others are given up. Raises KeyRefusedError (401, 403), InputError
        (another refusal, an unknown role), or MachineError where the server cannot be reached, fails, answers in another
        form, or takes longer than `timeout_s`.
        """
        tasks = [asyncio.create_task(self._one(query)) for query in queries]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def close(self) -> None:
        """Let go of the connections; the next question opens new ones."""
        if self._opened is not None:
            client, self._opened = self._opened[0], None
            await client.close()

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Give each answer as one piece."""
        for index, answer in enumerate(self.answer(queries)):
            yield Piece(index=index, text=answer.text, answer=answer)

    def _connected(self) -> tuple[Any, asyncio.Semaphore]:
        """The client of this event loop, and its places."""
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        if self._opened is None:
            http = DefaultAsyncHttpxClient(follow_redirects=False)
            # An empty key would have the client look for OPENAI_API_KEY, which is the teacher's and must not leave here.
            client = AsyncOpenAI(base_url=self.name, api_key=self._key or "none", max_retries=0, http_client=http)
            self._opened = (client, asyncio.Semaphore(CONNECTIONS))
        return self._opened

    async def _one(self, query: StudentQuery) -> StudentAnswer:
        client, places = self._connected()
        async with places:
            return await self._answered(client, query)

    async def _answered(self, client: Any, query: StudentQuery) -> StudentAnswer:
        from openai import APIError, APIStatusError

        body = self._body(query)
        deadline = time.monotonic() + self._timeout_s
        least = LEAST_WAIT_S
        while True:
            try:
                reply = await client.chat.completions.create(**body, timeout=deadline - time.monotonic())
                return _read(query.role, reply)
            except APIError as error:
                busy = _busy_s(error) if isinstance(error, APIStatusError) else None
                wait = None if busy is None else max(busy, least)
                if wait is None or time.monotonic() + wait >= deadline:
                    raise self._mapped(error) from error
            except (AttributeError, LookupError, TypeError, ValueError) as error:  # the client checks no reply's form
                message = f"what {self.name} answered as {query.role!r} is no chat completion"
                raise MachineError(message, hint=SHAPE_HINT) from error
            await asyncio.sleep(wait)
            least *= 2

    def _body(self, query: StudentQuery) -> dict[str, Any]:
        """The request; what is not asked for is left out, since servers differ in what they know."""
        if query.role not in self._systems:
            message = f"the student at {self.name} has no role {query.role!r}"
            raise InputError(message, hint=f"it has {', '.join(self.roles)}")
        turns = [message.model_dump() for message in query.messages]
        if not any(turn["role"] == "system" for turn in turns):
            turns.insert(0, {"role": "system", "content": self._systems[query.role]})
        body: dict[str, Any] = {
            "model": query.role,
            "messages": turns,
            "max_tokens": query.max_new_tokens,
            "temperature": query.temperature,
            "logprobs": True,
        }
        if query.temperature > 0:
            body["top_p"] = query.top_p
        if query.seed is not None:
            body["seed"] = query.seed
        if query.stop:
            body["stop"] = list(query.stop)
        return body

    def _mapped(self, error: Any) -> PotstillError:
        from openai import APITimeoutError

        status = getattr(error, "status_code", None)
        if isinstance(error, APITimeoutError):
            return MachineError(f"the student at {self.name} gave no answer within {self._timeout_s:g} s")
        said = f"the student at {self.name} " + (f"refused ({status})" if status else "failed") + f": {error.message}"
        if status in {401, 403}:
            return KeyRefusedError(said, hint=KEY_HINT)
        if status is not None and 400 <= status < 500 and status not in BUSY:  # noqa: PLR2004  (HTTP's classes)
            return InputError(said, hint="does infer.student_url end in /v1, and are its models named as the roles?")
        return MachineError(said, hint="is infer.student_url right, and the server up?")


def _check(url: str) -> None:
    """Refuse what is no plain address: it stands in errors and traces, where a password must not."""
    try:
        parts = urlsplit(url)
        plain = parts.scheme in {"http", "https"} and parts.hostname and "@" not in parts.netloc and url.isprintable()
    except ValueError:
        plain = False
    if not plain:
        message = "infer.student_url is no http(s) URL of a server, without user and password"
        raise ConfigError(message, hint=f"for example http://127.0.0.1:8000/v1; {KEY_HINT}")


def _busy_s(error: Any) -> float | None:
    """Seconds after which a server that is full should be asked again; None for any other answer."""
    if error.status_code not in BUSY:
        return None
    said = error.response.headers.get("retry-after", "")
    return float(said) if said.isdecimal() else BUSY_WAIT_S


def _read(role: str, reply: Any) -> StudentAnswer:
    """An answer with its confidence. A reply of another form raises what Python says of it."""
    choice = reply.choices[0]
    tokens = (choice.logprobs.content if choice.logprobs else None) or []
    logprobs = [token.logprob for token in tokens]
    return StudentAnswer(
        role=role,
        text=(choice.message.content or "").strip(),
        finish_reason="length" if choice.finish_reason == "length" else "stop",
        prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
        completion_tokens=reply.usage.completion_tokens if reply.usage else 0,
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        min_logprob=min(logprobs, default=None),
    )
