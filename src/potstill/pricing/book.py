"""The price book: dated rows with sources, and usage turned into exact dollars.

Rows are chosen by model, service, day and prompt length; where there is none the answer is an error, never 0.
Billing (Gemini API, usageMetadata): input without cached tokens at the input price, cached tokens at the cache price,
output and thinking tokens at the output price; the prompt's length picks the tier for the whole request.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from potstill.config import PricesConfig
from potstill.errors import ConfigError, InputError, UnknownModelError
from potstill.records import Usage
from potstill.workspace import read_text

MILLION = Decimal(1_000_000)
SERVICES = ("standard", "flex", "batch", "priority")


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Price(_Row):
    """One row: dollars per million tokens for a service, a span of days and a span of prompt lengths."""

    model: str = ""
    service: str
    valid_from: date | None = Field(None, alias="from")
    valid_to: date | None = Field(None, alias="to")
    prompt_over: int | None = Field(None, alias="gt")
    prompt_up_to: int | None = Field(None, alias="le")
    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    source: str
    as_of: str
    derived: bool = False

    @property
    def id(self) -> str:
        """Names the row wherever a cost is written down."""
        tier = f"/over-{self.prompt_over}" if self.prompt_over else ""
        return f"{self.model}/{self.service}/{self.valid_from or 'start'}{tier}/{self.source}"

    def covers(self, service: str, on: date, prompt_tokens: int) -> bool:
        """Whether the row holds for this service, day and prompt."""
        in_time = (self.valid_from is None or self.valid_from <= on) and (self.valid_to is None or on <= self.valid_to)
        over = self.prompt_over is None or prompt_tokens > self.prompt_over
        up_to = self.prompt_up_to is None or prompt_tokens <= self.prompt_up_to
        return self.service == service and in_time and over and up_to

    def cost(self, usage: Usage) -> Decimal:
        """Dollars for one answer's usage."""
        cached = self.input if self.cached is None else self.cached
        return (
            (usage.input_tokens - usage.cached_tokens) * self.input
            + usage.cached_tokens * cached
            + (usage.output_tokens + usage.thinking_tokens) * self.output
        ) / MILLION


class Model(_Row):
    """A model's facts and its prices."""

    id: str
    aliases: tuple[str, ...] = ()
    status: str
    shutdown: date | None = None
    free_tier: bool
    prices: tuple[Price, ...]


class Limit(_Row):
    """Quota of a model in a usage tier: requests a minute, input tokens a minute, requests a day."""

    model: str
    tier: str
    rpm: int | None
    tpm_input: int | None
    rpd: int | None
    source: str
    as_of: str


class GpuPrice(_Row):
    """Dollars an hour for a rented GPU."""

    provider: str
    gpu: str
    usd_per_hour: Decimal
    source: str
    as_of: str
    note: str = ""


class _Book(_Row):
    schema_version: int
    read: date
    about: str
    sources: Mapping[str, Any]
    models: tuple[Model, ...]
    limits: tuple[Limit, ...] = ()
    gpus: tuple[GpuPrice, ...] = ()


class Priced(_Row):
    """Dollars, and the row that they come from."""

    usd: Decimal
    price_id: str


class PriceBook:
    """Prices by model, service and day."""

    def __init__(self, book: _Book, overrides: Mapping[str, Mapping[str, Decimal]]) -> None:
        self.read_on = book.read
        self.limits = book.limits
        self.gpus = book.gpus
        self._models = {model.id: model for model in book.models}
        self._aliases = {alias: model.id for model in book.models for alias in model.aliases}
        self._overrides = {name: _override(name, values) for name, values in overrides.items()}
        self.overridden = frozenset(self._overrides)

    def models(self) -> tuple[Model, ...]:
        """All models, retired ones included."""
        return tuple(self._models.values())

    def model(self, name: str) -> Model:
        """A model by name or alias; raises UnknownModelError naming its nearest neighbour."""
        plain = name.removeprefix("models/")
        known = self._aliases.get(plain, plain)
        if known in self._models:
            return self._models[known]
        near = difflib.get_close_matches(plain, [*self._models, *self._aliases], n=1)
        message = f"no price for model {name!r}"
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(message, hint=hint + "`potstill cost prices` lists them; prices.overrides adds one")

    def price(self, model: str, service: str, on: date, prompt_tokens: int = 0) -> Price:
        """The row for a model, service, day and prompt length; raises UnknownModelError where there is none."""
        plain = model.removeprefix("models/")
        if plain in self._overrides:
            return self._overrides[plain]
        found = self.model(model)
        if found.shutdown is not None and on >= found.shutdown:
            message = f"{found.id} was shut down on {found.shutdown}"
            raise UnknownModelError(
                message, hint="use --set teacher.model=gemini-3.5-flash-lite, or an earlier --as-of"
            )
        row = next((row for row in found.prices if row.covers(service, on, prompt_tokens)), None)
        if row is None:
            message = f"no price for {found.id}, service {service}, on {on}"
            has = sorted({price.service for price in found.prices})
            raise UnknownModelError(message, hint=f"it has {', '.join(has) or 'no prices at all'}")
        return row.model_copy(update={"model": found.id})

    def cost(self, usage: Usage, model: str, service: str, on: date) -> Priced:
        """Exact dollars for one answer's usage."""
        price = self.price(model, service, on, usage.input_tokens)
        return Priced(usd=price.cost(usage), price_id=price.id)

    def worst_case(
        self,
        model: str,
        service: str,
        on: date,
        *,
        input_tokens: int,
        max_output_tokens: int,
        thinking_budget: int | None,
    ) -> Decimal:
        """The most that a request can cost: nothing cached, all output and all thinking used, the dearest tier.

        A `thinking_budget` of None has no bound of its own; it is then taken to be another `max_output_tokens`.
        """
        thinking = max_output_tokens if thinking_budget is None else thinking_budget
        usage = Usage(input_tokens=input_tokens, output_tokens=max_output_tokens, thinking_tokens=thinking)
        return max(price.cost(usage) for price in self._tiers(model, service, on))

    def last_day(self, model: str) -> date | None:
        """The last day on which a retired model had a price; None for a model that is still there."""
        shutdown = self.model(model).shutdown
        return shutdown - timedelta(days=1) if shutdown else None

    def _tiers(self, model: str, service: str, on: date) -> Iterator[Price]:
        """The rows of every prompt length."""
        yield (first := self.price(model, service, on))
        if first.prompt_up_to is not None:
            yield self.price(model, service, on, first.prompt_up_to + 1)


def load_prices(config: PricesConfig) -> PriceBook:
    """The shipped book, or `prices.file`, with `prices.overrides` on top; raises InputError naming file and field."""
    if config.file is None:
        origin, text = "prices.json", files("potstill.pricing").joinpath("prices.json").read_text("utf-8")
    else:
        origin, text = config.file, read_text(Path(config.file), "price file")
    try:
        return PriceBook(_Book.model_validate(json.loads(text)), config.overrides)
    except json.JSONDecodeError as error:
        message = f"{origin}:{error.lineno}: not JSON: {error.msg}"
        raise InputError(message) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = f"{origin}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise InputError(message) from error


def _override(model: str, values: Mapping[str, Decimal]) -> Price:
    unknown = set(values) - {"input", "output", "cached_input"}
    if unknown or not {"input", "output"} <= set(values):
        message = f"prices.overrides.{model}: needs input and output, may have cached_input; got {sorted(values)}"
        raise ConfigError(message)
    if min(values.values()) < 0:
        message = f"prices.overrides.{model}: a price is never negative"
        raise ConfigError(message)
    return Price(
        model=model,
        service="override",
        input=values["input"],
        output=values["output"],
        cached=values.get("cached_input"),
        source="config",
        as_of="config",
    )
