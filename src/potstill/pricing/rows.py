"""The rows of a price file: what is priced, since when, by which source. Frozen data, and arithmetic on one row."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field

from potstill.errors import UnknownModelError
from potstill.records import Usage

MILLION = Decimal(1_000_000)
SERVICES = ("standard", "flex", "batch", "priority")
OVERRIDE = "override"
"""Service of a row from `prices.overrides` that holds for every service."""


class Row(BaseModel):
    """Base of the rows: frozen, and a field that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Source(Row):
    """Where a figure was read."""

    what: str
    url: str | None = None
    package: str | None = None
    version: str | None = None
    as_of: str | None = None
    kind: str = ""


class Storage(Row):
    """Dollars for keeping a million cached tokens for an hour."""

    value: Decimal
    source: str
    as_of: str


class Price(Row):
    """One row: dollars per million tokens for a service, a span of days and a span of prompt lengths.

    `output` includes thinking, and is None for a model that answers no tokens (embeddings). `cached` None: full price.
    """

    model: str = ""
    service: str
    valid_from: date | None = Field(None, alias="from")
    valid_to: date | None = Field(None, alias="to")
    prompt_over: int | None = Field(None, alias="gt")
    prompt_up_to: int | None = Field(None, alias="le")
    input: Decimal = Field(ge=0)
    output: Decimal | None = Field(None, ge=0)
    cached: Decimal | None = Field(None, ge=0)
    storage: Storage | None = None
    source: str
    as_of: str
    confirmed_by: tuple[str, ...] = ()
    derived: bool = False
    dates_inferred: bool = False

    @property
    def id(self) -> str:
        """Names the row wherever a cost is written down."""
        tier = f"/over-{self.prompt_over}" if self.prompt_over else ""
        return f"{self.model}/{self.service}/{self.valid_from or 'start'}{tier}/{self.source}"

    def holds_on(self, day: date) -> bool:
        """Whether the row holds on this day."""
        return (self.valid_from is None or self.valid_from <= day) and (self.valid_to is None or day <= self.valid_to)

    def covers(self, service: str, on: date, prompt_tokens: int) -> bool:
        """Whether the row holds for this service, day and prompt."""
        over = self.prompt_over is None or prompt_tokens > self.prompt_over
        up_to = self.prompt_up_to is None or prompt_tokens <= self.prompt_up_to
        return self.service in (service, OVERRIDE) and self.holds_on(on) and over and up_to

    def cost(self, usage: Usage) -> Decimal:
        """Dollars for one answer's usage; raises UnknownModelError for output of a model that has no output price."""
        answered = usage.output_tokens + usage.thinking_tokens
        if answered and self.output is None:
            message = f"{self.model} has no price for output tokens"
            raise UnknownModelError(message, hint="it answers with embeddings: give 0 output tokens")
        cached = self.input if self.cached is None else self.cached
        plain = max(0, usage.input_tokens - usage.cached_tokens)
        return (plain * self.input + usage.cached_tokens * cached + answered * (self.output or 0)) / MILLION


class Model(Row):
    """A model's facts and its prices.

    `shutdown`: the first day without it. `routed_to`: what then answers its requests, at its own price; None: nothing.
    `free_tier` and the numbers of tokens are None where no source says.
    """

    id: str
    aliases: tuple[str, ...] = ()
    status: str = "active"
    released: date | None = None
    shutdown: date | None = None
    shutdown_source: str | None = None
    shutdown_is_earliest: bool = False
    replacement: str | None = None
    routed_to: str | None = None
    thinking: str | None = None
    free_tier: bool | None = None
    implicit_cache_min_tokens: int | None = None
    cache_source: str | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    note: str = ""
    prices: tuple[Price, ...] = ()

    def gone(self, on: date) -> bool:
        """Whether the model has been shut down on this day."""
        return self.shutdown is not None and on >= self.shutdown


class Limit(Row):
    """Quota of a model in a usage tier: requests a minute, input tokens a minute, requests a day; None: not printed."""

    model: str
    tier: str
    rpm: int | None = None
    tpm_input: int | None = None
    rpd: int | None = None
    source: str
    as_of: str
    superseded: bool = False


class Tier(Row):
    """A usage tier: how to get there, the cap a month, what may be spent in ten minutes (429 beyond it), its services."""

    tier: str
    qualification: str
    monthly_cap_usd: Decimal | None = None
    monthly_cap_up_to_usd: Decimal | None = None
    usd_per_10_min: Decimal | None = None
    services: tuple[str, ...] = SERVICES
    source: str
    as_of: str
    confirmed_by: tuple[str, ...] = ()


class Queue(Row):
    """How many input tokens of batch jobs may wait at once."""

    model: str
    tier: str
    enqueued_tokens: int


class BatchRules(Row):
    """Batch mode's limits."""

    target_hours: int
    concurrent_jobs: int
    source: str
    as_of: str
    queues: tuple[Queue, ...] = ()


class Grounding(Row):
    """Dollars for a thousand searches by the model."""

    models: str
    usd_per_1000: Decimal
    source: str
    as_of: str


class Claim(Row):
    """A sum that a document states, kept beside the prices that it follows from."""

    what: str
    usd: Decimal
    remark: str = ""


class BookData(Row):
    """A whole price file."""

    schema_version: int
    name: str = "custom"
    read: date
    about: str = ""
    sources: Mapping[str, Source] = {}
    models: tuple[Model, ...]
    limits: tuple[Limit, ...] = ()
    tiers: tuple[Tier, ...] = ()
    batch: BatchRules | None = None
    grounding: tuple[Grounding, ...] = ()
    claims: tuple[Claim, ...] = ()
