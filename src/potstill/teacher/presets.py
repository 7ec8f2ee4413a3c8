"""Limits by usage tier, from the price book's dated rows. Pure.

A preset fills only what the config leaves at its default, and only where the tier was named: without one, the source
design's 150 requests a minute hold. A model without a published row takes that of the newest sibling (flash-lite,
flash, pro) in the tier; what the teacher itself names in a 429 corrects both.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from potstill.config import Resolved, TeacherConfig, with_values
from potstill.errors import ConfigError
from potstill.pricing.book import PriceBook, load_prices
from potstill.pricing.rows import Limit

FAMILIES = ("flash-lite", "flash", "pro")


def with_preset(resolved: Resolved) -> Resolved:
    """The config with its tier's limits filled in, and the origin of each; raises InputError for a bad price file."""
    if resolved.origins["teacher.tier"] == "default":
        return resolved
    teacher = resolved.config.teacher
    found = preset(load_prices(resolved.config.prices), teacher.model, teacher.tier)
    open_keys = {key: value for key, value in found.items() if resolved.origins[f"teacher.{key}"] == "default"}
    config = with_values(resolved.config, teacher={key: value for key, (value, _) in open_keys.items()})
    origins = {f"teacher.{key}": f"preset {teacher.tier}: {origin}" for key, (_, origin) in open_keys.items()}
    return Resolved(config, {**resolved.origins, **origins}, resolved.secrets)


def preset(book: PriceBook, model: str, tier: str) -> dict[str, tuple[Any, str]]:
    """Config key -> value and where it was read; keys that nothing is known about are left out."""
    found: dict[str, tuple[Any, str]] = {}
    row = book.limit(model, tier) or _sibling(book, model, tier)
    if row is not None:
        origin = f"{row.model}, {row.source}, {row.as_of}"
        found |= {"rpm": (row.rpm, origin), "tpm": (row.tpm_input, origin), "rpd": (row.rpd, origin)}
    rules = book.tier(tier)
    if rules is not None and rules.usd_per_10_min is not None:
        found["usd_per_10min"] = (rules.usd_per_10_min, f"{rules.source}, {rules.as_of}")
    return {key: (value, origin) for key, (value, origin) in found.items() if value is not None}


def check_service(book: PriceBook, teacher: TeacherConfig, on: date) -> None:
    """Raise ConfigError for a service that the usage tier has not, UnknownModelError for one without a price."""
    book.price(teacher.model, teacher.service, on)
    offered = book.services(teacher.model, on, teacher.tier)
    if teacher.service not in offered:
        message = f"teacher.service: {teacher.service} is not offered in teacher.tier: {teacher.tier}"
        raise ConfigError(message, hint=f"it has {', '.join(offered)}")


def _sibling(book: PriceBook, model: str, tier: str) -> Limit | None:
    family = _family(model)
    rows = [row for row in book.limits if row.tier == tier and family is not None and _family(row.model) == family]
    return max(rows, key=lambda row: (not row.superseded, row.as_of, row.model), default=None)


def _family(model: str) -> str | None:
    return next((family for family in FAMILIES if model.endswith(f"-{family}") or f"-{family}-" in model), None)
