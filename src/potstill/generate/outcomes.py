"""What an answer asks for besides being kept. Pure."""

from __future__ import annotations

from potstill.config import GenerateConfig
from potstill.generate.sift import repeated_share
from potstill.teacher.calls import Answer, TeacherRequest, with_output_limit
from potstill.teacher.wire import TRUNCATED


def second_request(request: TeacherRequest, answer: Answer, generate: GenerateConfig) -> TeacherRequest | None:
    """The same request with `generate.truncated_limit`, for an answer that hit its limit; None where one is enough.

    An answer that runs in a loop would only run longer, so it is not asked for again.
    """
    limit = generate.truncated_limit
    if answer.finish_reason != TRUNCATED or limit is None or limit <= generate.max_output_tokens:
        return None
    if repeated_share(answer.text) > generate.filters.max_repetition:
        return None
    return with_output_limit(request, limit)


def both(first: Answer, second: Answer) -> Answer:
    """The second answer, at the cost of the two."""
    return second.model_copy(update={"cost_usd": first.cost_usd + second.cost_usd, "usage": first.usage + second.usage})
