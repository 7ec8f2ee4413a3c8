"""One query on its way through an engine: its prompt, its tokens so far, and the text that may be shown of them."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from potstill.student.answers import Choice, ChosenToken, Piece, StudentAnswer, StudentQuery
from potstill.student.schema import Constraint


class Voice:
    """A tokenizer's way back to text: as tokens come, and token by token."""

    def __init__(self, tokenizer: Any, stops: frozenset[int]) -> None:
        self.stops = stops
        self._tokenizer = tokenizer
        self._seen: dict[int, tuple[str, bytes]] = {}

    def stream(self) -> Any:
        """A decoder that takes ids and gives text as soon as its characters are whole."""
        from tokenizers.decoders import DecodeStream

        return DecodeStream(skip_special_tokens=True)

    def say(self, stream: Any, token: int) -> str:
        """The text that one more token completes; empty in the middle of a character."""
        return stream.step(self._tokenizer.backend_tokenizer, token) or ""

    def token(self, token: int) -> tuple[str, bytes]:
        """A token's own text and bytes; half a character has bytes but no readable text."""
        if token not in self._seen:
            data = self._bytes(token)
            self._seen[token] = (data.decode("utf-8", "replace"), data)
        return self._seen[token]

    def chosen(self, choice: Choice) -> ChosenToken:
        """A choice with its rivals, in text and bytes."""
        top = tuple(ChosenToken(*self.token(rival.token), rival.logprob) for rival in choice.top)
        return ChosenToken(*self.token(choice.token), choice.logprob, top)

    def _bytes(self, token: int) -> bytes:
        """Through the byte-level alphabet (GPT-2's) or the byte tokens (SentencePiece's), else as it is decoded."""
        raw = self._tokenizer.convert_ids_to_tokens(token) or ""
        if self._alphabet and all(letter in self._alphabet for letter in raw):
            return bytes(self._alphabet[letter] for letter in raw)
        if len(raw) == len("<0x00>") and raw.startswith("<0x"):
            return bytes.fromhex(raw[3:5])
        return str(self._tokenizer.decode([token])).encode()

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        """Letter -> byte of a byte-level tokenizer; empty for another kind."""
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        if "ByteLevel" not in type(self._tokenizer.backend_tokenizer.decoder).__name__:
            return {}
        return {letter: byte for byte, letter in bytes_to_unicode().items()}


@dataclass(eq=False)
class Row:
    """One query, ready to be decoded.

    `adapter` is its number in the bank; the first `shared` tokens of `prompt` are the beginning that all prompts of
    `key` have in common. `room` is how many tokens of answer fit into the base's context after the prompt. `filled`
    counts the tokens whose keys and values are in the engine's memory.
    """

    query: StudentQuery
    prompt: list[int]
    voice: Voice
    adapter: int | None = None
    key: str = ""
    shared: int = 0
    constraint: Constraint | None = None
    room: int = sys.maxsize
    number: int = -1
    filled: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    shown: int = 0
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._draw = random.Random(None if self.query.seed is None else str(self.query.seed))  # noqa: S311  (sampling, no secret)
        self._stream = self.voice.stream()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the rendered prompt."""
        return len(self.prompt)

    def unread(self) -> int:
        """Tokens of the prompt that its role's other prompts do not begin with."""
        return len(self.prompt) - self.shared

    @property
    def steers(self) -> bool:
        """Whether something but the model has a say in the next token."""
        query = self.query
        return bool(query.logit_bias or query.frequency_penalty or query.presence_penalty or self.constraint)

    def uniform(self) -> float:
        """The next number of this row's own generator, in [0, 1)."""
        return self._draw.random()

    def steer(self, scores: Any) -> None:
        """Change the scores (vocabulary) in place: penalties and bias as OpenAI defines them, then the schema."""
        query = self.query
        if self.ids and (query.frequency_penalty or query.presence_penalty):
            for token, count in Counter(self.ids).items():
                scores[token] -= count * query.frequency_penalty + query.presence_penalty
        for token, bias in query.logit_bias.items():
            scores[token] += bias
        if self.constraint is not None:
            self.constraint.forbid(scores)

    def take(self, choice: Choice) -> Piece | None:
        """Take one token and give what can be shown of it; None where that is nothing."""
        self.logprobs.append(choice.logprob)
        tokens = () if self.query.top_logprobs is None else (self.voice.chosen(choice),)
        if choice.token in self.voice.stops:
            self.finish_reason, tokens = "stop", ()
        else:
            self.ids.append(choice.token)
            self._say(self.voice.say(self._stream, choice.token))
            if self.finish_reason is None and not self._goes_on(choice.token):
                self.finish_reason = "length"
        safe = len(self.text) if self.finish_reason else self._safe_length()
        new, self.shown = self.text[self.shown : safe], max(self.shown, safe)
        if self.finish_reason is not None:
            return Piece(index=self.number, text=new, tokens=tokens, answer=self._answer())
        return Piece(index=self.number, text=new, tokens=tokens) if new or tokens else None

    def _goes_on(self, token: int) -> bool:
        if len(self.ids) >= min(self.query.max_new_tokens, self.room):
            return False
        return self.constraint is None or self.constraint.take(token)

    def _say(self, new: str) -> None:
        """Add text; a stop text ends the answer before it."""
        start = len(self.text)
        self.text += new
        cuts = [self.text.find(stop, max(0, start - len(stop) + 1)) for stop in self.query.stop]
        if found := [cut for cut in cuts if cut >= 0]:
            self.text, self.finish_reason = self.text[: min(found)], "stop"

    def _safe_length(self) -> int:
        """How much of an unfinished text can be shown: no beginning of a stop text."""
        held = [size for stop in self.query.stop for size in range(1, len(stop)) if self.text.endswith(stop[:size])]
        return max(self.shown, len(self.text) - max(held, default=0))

    def _answer(self) -> StudentAnswer:
        return StudentAnswer(
            role=self.query.role,
            text=self.text.strip(),
            finish_reason="length" if self.finish_reason == "length" else "stop",
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self.logprobs),
            mean_logprob=sum(self.logprobs) / len(self.logprobs),
            min_logprob=min(self.logprobs),
        )
