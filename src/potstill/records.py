"""What stands on disk: frozen, versioned records, named by the hash of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from potstill.errors import InputError

ID_SCHEME = "c1"
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

Usd = Annotated[Decimal, PlainSerializer(lambda value: format(value, "f"), return_type=str, when_used="json")]
"""Dollars. On disk a decimal string such as "0.0006375": never a float, never an exponent."""


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, no NaN."""
    return CANONICAL.encode(value).encode("utf-8")


def content_id(value: Any) -> str:
    """Name a JSON value by its content, e.g. `c1:5f2a...` (SHA-256, 32 hex digits, tagged with the scheme)."""
    return bytes_id(canonical_json(value))


def bytes_id(canonical: bytes) -> str:
    """The same, for a value whose canonical form is at hand."""
    return f"{ID_SCHEME}:{hashlib.sha256(canonical).hexdigest()[:32]}"


def text_sha(text: str) -> str:
    """SHA-256 of a text in UTF-8, 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


Model = TypeVar("Model", bound=BaseModel)


def from_json(kind: type[Model], text: str | bytes, origin: str | Path, *, hint: str | None = None) -> Model:
    """What a file or a line of one says; raises InputError naming `origin` (a path, `path:line`) and the field."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        message = f"{origin}: {first_problem(error)}"
        raise InputError(message, hint=hint) from error


def from_data(kind: type[Model], data: Any, origin: str | Path) -> Model:
    """The same for what is parsed already."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        message = f"{origin}: {first_problem(error)}"
        raise InputError(message) from error


def from_lines(kind: type[Model], lines: Iterable[str], origin: str | Path) -> Iterator[Model]:
    """The records of a file that grows by a line each; a line that is no JSON was torn by a full disk, and passed over.

    Raises InputError naming line and field for any other that does not fit.
    """
    for number, line in enumerate(lines, start=1):
        try:
            yield kind.model_validate_json(line)
        except ValidationError as error:
            if not is_torn(error):
                message = f"{origin}:{number}: {first_problem(error)}"
                raise InputError(message) from error


def is_torn(error: ValidationError) -> bool:
    """Whether what was read is no JSON at all, as a line is that a full disk or a crash cut off."""
    return error.errors(include_url=False)[0]["type"] == "json_invalid"


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, e.g. `usage.input_tokens: Field required`."""
    first = error.errors(include_url=False)[0]
    return ": ".join((*filter(None, [".".join(map(str, first["loc"]))]), first["msg"]))


class Record(BaseModel):
    """Base of what is written to disk: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_line(self) -> str:
        """One line of JSON Lines, newline included."""
        return self.model_dump_json() + "\n"


class Message(Record):
    """One turn of a chat, in the form that OpenAI and TRL use."""

    role: Literal["system", "user", "assistant"]
    content: str


class Usage(Record):
    """Tokens that one answer of the teacher was billed for.

    `input_tokens` includes `cached_tokens`; `output_tokens` excludes `thinking_tokens`. Both output kinds are billed
    at the output price (Gemini API, `usageMetadata`).
    """

    input_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            thinking_tokens=self.thinking_tokens + other.thinking_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


class Sample(Record):
    """One answer of the teacher to one prompt in one role: a line of the dataset.

    `rationale`: how the teacher says that it came to the last answer; left out of the line where it was not asked.
    """

    id: str
    messages: tuple[Message, ...]
    role: str
    prompt_id: str
    sample: int
    model: str
    finish_reason: str
    usage: Usage
    cost_usd: Usd
    prompt_sha: str
    created_at: datetime
    rationale: str | None = Field(None, exclude_if=lambda text: text is None)


class Rejected(Record):
    """A sample that was sifted out, with the reason."""

    sample: Sample
    reason: str
    detail: str = ""


class Attempt(Record):
    """One attempt at a paid call, as the ledger holds it.

    `open`: sent, and no answer on disk (after a crash: possibly paid, counted at `reserved_usd`); `done`: answered;
    `failed`: refused or broken, billed `cost_usd`, which is 0 where the teacher bills nothing.
    """

    id: int
    key: str
    command: str
    role: str | None
    model: str
    service: str
    status: Literal["open", "done", "failed"]
    reason: str | None
    reserved_usd: Usd
    cost_usd: Usd
    price_id: str | None
    usage: Usage
    started_at: datetime
    finished_at: datetime | None


class Score(Record):
    """How well answers agree with the teacher's on held-out prompts: a share in 0..1 with its 95 % interval.

    `well_formed`: share of JSON answers with the teacher's shape, None where none is JSON; `nll`: nats a token that the
    teacher's own answers cost the student, `similarity`: cosine of the answers' embeddings to the teacher's, each None
    where it was not measured.
    """

    n: int
    exact: float
    score: float
    low: float
    high: float
    well_formed: float | None = None
    nll: float | None = None
    similarity: float | None = None


class Ceiling(Record):
    """How well the teacher agrees with itself: no student can be asked for more. `source` says how it was measured."""

    n: int
    score: float
    low: float
    high: float
    source: str


class Duel(Record):
    """The teacher's choice between its own answers and the student's; `score` counts a tie as a half."""

    n: int
    wins: int
    ties: int
    losses: int
    score: float
    low: float
    high: float
    cost_usd: Usd


class RouterPoint(Record):
    """One threshold that was tried: the share of prompts above it, how many are answered well, and what it saves."""

    threshold: float
    coverage: float
    agreement: float
    agreement_low: float
    risk_high: float
    saved_usd_per_1000: Usd


class Familiar(Record):
    """From which cosine to its nearest training question on a question counts as one that the student was taught.

    `encoder` names what made the vectors of those `questions`, which lie in `questions.safetensors`; `least_cosine` is
    what 95 % of the held-out questions reach, because about questions farther away those prove nothing.
    """

    encoder: str
    least_cosine: float
    questions: int


class RouterRule(Record):
    """When the router may leave the teacher out: the student's mean token log-probability is at least `threshold`.

    `threshold` is None where no threshold keeps the promise; `coverage` is the share of held-out prompts above it,
    `agreement_low` the 95 % lower bound of their agreement with the teacher; `curve` holds all thresholds tried. With
    `familiar`, a question must also be near the training questions; `alone` is the rule that does without.
    """

    signal: Literal["mean_logprob"] = "mean_logprob"
    threshold: float | None
    coverage: float
    agreement_low: float
    reason: str
    curve: tuple[RouterPoint, ...] = ()
    familiar: Familiar | None = None
    alone: RouterRule | None = None


class Gain(Record):
    """A student's score less that of the student before it, on the same held-out prompts, with its 95 % interval."""

    n: int
    earlier: float
    gain: float
    low: float
    high: float


class Verdict(Record):
    """Can the student replace the teacher? Stands in `students/<name>/verdict.json`.

    `near_duplicates` counts held-out answers left out because their question stands among the training questions.
    Break-even counts requests of all traffic, of which the student answers `coverage_paid`. `evaluation_id` names the
    settings that it was judged by, `encoder` what measured the similarity (or why nothing did). `gain` is None where no
    student stood here before, or one that answers something else.
    """

    schema_version: Literal[1] = 1
    student: str
    base: str
    teacher_model: str
    metric: str
    base_score: Score
    student_score: Score
    by_role: dict[str, Score]
    margin: float
    can_replace: bool
    reason: str
    router: RouterRule
    paid_usd: Usd
    teacher_usd_per_request: Usd
    break_even_requests: int | None
    created_at: datetime
    replaces_by_role: dict[str, bool] = {}
    ceiling: Ceiling | None = None
    duel: Duel | None = None
    near_duplicates: int = 0
    coverage_paid: float = 1.0
    requests_a_day: int | None = None
    break_even_days: float | None = None
    evaluation_id: str = ""
    encoder: str = ""
    gain: Gain | None = None


class Evaluated(Record):
    """One held-out answer of a student: a line of `students/<name>/evaluation.jsonl`.

    `good`: it could stand for the teacher's, by the judge where there was one, else by agreement within the margin.
    """

    prompt_id: str
    role: str
    question: str
    reference: str
    answer: str
    score: float
    good: bool


class Trace(Record):
    """One query through the router: a line of `traces/<day>.jsonl`.

    `route` names what answered; `reason` why the steps before did not; `baseline_usd` is what Gemini alone would have
    cost, by the usage of the call that was made or, where none was, by an estimate. `score` is that of the nearest cached
    question that no guard spoke against, by the rule in force, `cosine` its similarity where it was served and
    `nearest_cosine` in any case. Where Gemini answered although the cache or the student could have, `nearest_agreement`
    and `student_agreement` are the word F1 of their answer with Gemini's: what `--replay` reads. `taught_cosine` is that
    of the nearest question that the student was trained on.
    """

    schema_version: Literal[1] = 1
    id: str
    at: datetime
    query: str
    namespace: str
    route: Literal["exact", "semantic", "student", "teacher", "merged"]
    reason: str
    cosine: float | None
    mean_logprob: float | None
    roles: tuple[str, ...]
    model: str | None
    entry_id: str | None
    cost_usd: Usd
    baseline_usd: Usd
    latency_s: float
    score: float | None = None
    nearest_cosine: float | None = None
    nearest_agreement: float | None = None
    student_agreement: float | None = None
    escalated: bool = False
    taught_cosine: float | None = None
