"""Answers that fit a JSON schema, by llguidance: before each token it says which tokens may follow."""

from __future__ import annotations

from typing import Any

from potstill.errors import InputError
from potstill.student.answers import QueryError


class Constraint:
    """The state of one constrained answer."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def forbid(self, scores: Any) -> None:
        """Set the scores (vocabulary) of all tokens that may not follow to minus infinity."""
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: scores.shape[0]].astype(bool))
        if not self._matcher.is_error() and bool(allowed.any()):
            scores[: len(allowed)].masked_fill_(~allowed.to(scores.device), float("-inf"))
            scores[len(allowed) :] = float("-inf")

    def take(self, token: int) -> bool:
        """Go on with a token; False where the answer cannot go on, because the schema's limits are reached."""
        return bool(self._matcher.consume_token(token)) and not self._matcher.is_error()


class SchemaCompiler:
    """Makes constraints for one tokenizer. Its tables take a second for a large vocabulary, so they are made once."""

    def __init__(self, tokenizer: Any, stops: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._stops = sorted(stops)
        self._tables: Any = None

    def compile(self, schema: str) -> Constraint:
        """A constraint for a JSON schema, a JSON document; raises QueryError where llguidance does not support it.

        llguidance bounds the work for a schema and for each token, so that no schema runs without end.
        """
        try:
            from llguidance import LLMatcher
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            message = "a JSON schema needs llguidance"
            raise InputError(message, hint="pip install 'potstill[local]'") from error
        if self._tables is None:
            self._tables = from_tokenizer(self._tokenizer, n_vocab=len(self._tokenizer), eos_token=self._stops)
        grammar = LLMatcher.grammar_from_json_schema(schema)
        if problem := LLMatcher.validate_grammar(grammar, self._tables):
            message = f"the schema is not supported: {problem.splitlines()[0]}"
            raise QueryError(message, field="json_schema")
        matcher = LLMatcher(self._tables, grammar, log_level=0)
        matcher.compute_bitmask()
        if matcher.is_error():  # such as one that is defined by nothing but itself
            message = "no text fits the schema"
            raise QueryError(message, field="json_schema")
        return Constraint(matcher)
