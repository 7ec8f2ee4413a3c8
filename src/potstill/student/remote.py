"""A student behind an OpenAI-shaped URL: vLLM, Ollama, llama.cpp, or another `serve-local`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from potstill.errors import MachineError
from potstill.records import content_id
from potstill.student.answers import Piece, StudentAnswer, StudentQuery


class RemoteStudent:
    """Implements `answers.Student` over the official openai client; a role is a model name of the server."""

    def __init__(self, url: str, roles: tuple[str, ...]) -> None:
        from openai import OpenAI

        self.name = url
        self.roles = roles
        self.fingerprint = content_id({"url": url, "roles": list(roles)})
        self._client = OpenAI(base_url=url, api_key="none", max_retries=0)

    def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
        """Ask for all answers at once; raises MachineError where the server fails."""
        with ThreadPoolExecutor(max_workers=max(1, len(queries))) as pool:
            return list(pool.map(self._one, queries))

    def stream(self, queries: Sequence[StudentQuery]) -> Iterator[Piece]:
        """Give each answer as one piece."""
        for index, answer in enumerate(self.answer(queries)):
            yield Piece(index=index, text=answer.text, answer=answer)

    def _one(self, query: StudentQuery) -> StudentAnswer:
        from openai import OpenAIError

        messages: Any = [message.model_dump() for message in query.messages]
        try:
            reply = self._client.chat.completions.create(
                model=query.role,
                messages=messages,
                max_tokens=query.max_new_tokens,
                temperature=query.temperature,
                top_p=query.top_p,
                seed=query.seed,
                stop=list(query.stop) or None,
                logprobs=True,
            )
        except OpenAIError as error:
            message = f"the student at {self.name} failed: {error}"
            raise MachineError(message, hint="is infer.student_url right, and the server up?") from error
        choice = reply.choices[0]
        logprobs = [token.logprob for token in (choice.logprobs.content if choice.logprobs else None) or []]
        return StudentAnswer(
            role=query.role,
            text=(choice.message.content or "").strip(),
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
            completion_tokens=reply.usage.completion_tokens if reply.usage else 0,
            mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
            min_logprob=min(logprobs, default=None),
        )
