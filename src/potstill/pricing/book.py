"""The price book: dated rows with sources, and usage turned into exact dollars.

Rows are chosen by model, service, day and prompt length; where there is none the answer is an error, never 0.
Billing (Gemini API, usageMetadata): input without cached tokens at the input price, cached tokens at the cache price,
output and thinking tokens at the output price; the prompt's length picks the tier for the whole request.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from decimal import Decimal

from potstill.config import PricesConfig
from potstill.errors import ConfigError, UnknownModelError
from potstill.pricing.files import read_book
from potstill.pricing.rows import OVERRIDE, SERVICES, BookData, Limit, Model, Price, Row, Tier
from potstill.records import Usage, from_data

__all__ = ["SERVICES", "Price", "PriceBook", "Priced", "load_prices"]

ONE_DAY = timedelta(days=1)
OVERRIDE_KEYS = {"input": "input", "output": "output", "cached_input": "cached"}


class Priced(Row):
    """Dollars, and the row that they come from."""

    usd: Decimal
    price_id: str


class PriceBook:
    """Prices by model, service and day."""

    def __init__(self, data: BookData, overrides: Mapping[str, Mapping[str, Decimal]]) -> None:
        self.data = data
        self.name = data.name
        self.read_on = data.read
        self.limits = data.limits
        self._models = {model.id: _named(model) for model in data.models}
        self._aliases = {alias: model.id for model in data.models for alias in model.aliases}
        self._overrides = {self._known(name): _overrides(name, values) for name, values in overrides.items()}
        self.overridden = frozenset(self._overrides)

    def models(self) -> tuple[Model, ...]:
        """All models, retired ones included."""
        return tuple(self._models.values())

    def model(self, name: str) -> Model:
        """A model by name or alias; raises UnknownModelError naming its nearest neighbour."""
        known = self._known(name)
        if known in self._models:
            return self._models[known]
        near = difflib.get_close_matches(known, [*self._models, *self._aliases], n=1)
        message = f"no price for model {name!r}"
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownModelError(message, hint=hint + "`potstill cost prices` lists them; prices.overrides adds one")

    def answering(self, name: str, on: date) -> Model:
        """The model that answers requests for `name` on a day: itself, or what a retired model is routed to.

        Raises UnknownModelError for a model that was shut down without a successor for its requests.
        """
        found = self.model(name)
        while found.gone(on):
            if found.routed_to is None:
                message = f"{found.id} was shut down on {found.shutdown}"
                instead = found.replacement or "gemini-3.5-flash-lite"
                raise UnknownModelError(message, hint=f"use --set teacher.model={instead}, or an earlier --as-of")
            found = self.model(found.routed_to)
        return found

    def price(self, model: str, service: str, on: date, prompt_tokens: int = 0) -> Price:
        """The row for a model, service, day and prompt length; raises UnknownModelError where there is none.

        A retired model whose requests are routed on is priced as the model that answers.
        """
        rows = self._overrides.get(self._known(model))
        found = None if rows else self.answering(model, on)
        for row in rows or (found.prices if found else ()):
            if row.covers(service, on, prompt_tokens):
                return row
        if found is None:
            return self._missing(self._known(model), service, on, rows or ())
        return self._missing(found.id, service, on, found.prices)

    def cost(self, usage: Usage, model: str, service: str, on: date) -> Priced:
        """Exact dollars for one answer's usage."""
        price = self.price(model, service, on, usage.input_tokens)
        return Priced(usd=price.cost(usage), price_id=price.id)

    def services(self, model: str, on: date, tier: str | None = None) -> tuple[str, ...]:
        """The services in which a model has a price on a day, and that a usage tier offers."""
        rows = self._overrides.get(self._known(model)) or self.answering(model, on).prices
        rules = self.tier(tier) if tier else None
        offered = rules.services if rules else SERVICES
        return tuple(name for name in SERVICES if name in offered and any(row.covers(name, on, 0) for row in rows))

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

        The hour and time zone of a price change are published nowhere, so the days before and after count as well.
        A `thinking_budget` of None has no bound of its own; it is then taken to be another `max_output_tokens`.
        """
        thinking = max_output_tokens if thinking_budget is None else thinking_budget
        usage = Usage(input_tokens=input_tokens, output_tokens=max_output_tokens, thinking_tokens=thinking)
        return max(price.cost(usage) for price in self._tiers(model, service, on))

    def last_day(self, model: str) -> date | None:
        """The last day on which a retired model had a price of its own; None for a model that is still there."""
        shutdown = self.model(model).shutdown
        return shutdown - ONE_DAY if shutdown else None

    def limit(self, model: str, tier: str) -> Limit | None:
        """The published quota of a model in a tier, the one in force before a superseded one; None where none is."""
        known = self._known(model)
        rows = [row for row in self.limits if (row.model, row.tier) == (known, tier)]
        return min(rows, key=lambda row: row.superseded, default=None)

    def tier(self, name: str) -> Tier | None:
        """The usage tier's rules; None in a book without them."""
        return next((tier for tier in self.data.tiers if tier.tier == name), None)

    def enqueued_tokens(self, model: str, tier: str) -> int | None:
        """How many batch tokens may wait at once; None where no source says."""
        queues = self.data.batch.queues if self.data.batch else ()
        known = self._known(model)
        return next((row.enqueued_tokens for row in queues if (row.model, row.tier) == (known, tier)), None)

    def _known(self, name: str) -> str:
        plain = name.removeprefix("models/")
        return self._aliases.get(plain, plain)

    def _missing(self, model: str, service: str, on: date, rows: tuple[Price, ...]) -> Price:
        message = f"no price for {model}, service {service}, on {on}"
        has = sorted({price.service for price in rows})
        raise UnknownModelError(message, hint=f"it has {', '.join(has) or 'no prices at all'}")

    def _tiers(self, model: str, service: str, on: date) -> Iterator[Price]:
        """The rows of every prompt length that may hold on this day or beside it."""
        yield (first := self.price(model, service, on))
        rows = self._overrides.get(self._known(model)) or self.answering(model, on).prices
        near = (on - ONE_DAY, on, on + ONE_DAY)
        for row in rows:
            if row is not first and row.service in (service, OVERRIDE) and any(row.holds_on(day) for day in near):
                yield row


def load_prices(config: PricesConfig) -> PriceBook:
    """The shipped book, or `prices.file`, with `prices.overrides` on top; raises InputError naming file and field."""
    origin, data = read_book(config.file)
    return PriceBook(from_data(BookData, data, origin), config.overrides)


def _named(model: Model) -> Model:
    """The model with its name on every row, so that a row can say what it prices."""
    rows = tuple(row.model_copy(update={"model": model.id}) for row in model.prices)
    return model.model_copy(update={"prices": rows})


def _overrides(model: str, values: Mapping[str, Decimal]) -> tuple[Price, ...]:
    """Rows of the config: `flex_input` and the like for one service first, then `input` for all that are left."""
    found, left = [], dict(values)
    for service in SERVICES:
        own = {key.removeprefix(f"{service}_"): left.pop(key) for key in values if key.startswith(f"{service}_")}
        found += [_override(model, service, own)] if own else []
    return (*found, _override(model, OVERRIDE, left))


def _override(model: str, service: str, values: Mapping[str, Decimal]) -> Price:
    if set(values) - set(OVERRIDE_KEYS) or not {"input", "output"} <= set(values):
        message = f"prices.overrides.{model}: needs input and output, may have cached_input; got {sorted(values)}"
        raise ConfigError(message, hint="batch_input, flex_output and so on price one service")
    if min(values.values()) < 0:
        message = f"prices.overrides.{model}: a price is never negative"
        raise ConfigError(message)
    prices = {OVERRIDE_KEYS[key]: value for key, value in values.items()}
    return Price(model=model, service=service, source="config", as_of="config", **prices)
