"""Limits by tier: filled in where nothing was said, with their origin."""

from __future__ import annotations

from decimal import Decimal

from potstill.config import PricesConfig, resolve
from potstill.pricing.book import load_prices
from potstill.teacher.presets import preset, with_preset


def test_without_a_named_tier_nothing_changes() -> None:
    """The source design's 150 requests a minute hold until a tier is named."""
    resolved = resolve(environ={})
    assert with_preset(resolved) is resolved


def test_a_named_tier_fills_what_is_open_and_says_from_where() -> None:
    """What was said stays, null included; the rest comes from the book's row, whose source is the origin."""
    resolved = with_preset(resolve(settings=["teacher.tier=tier1", "teacher.rpd=null", "teacher.tpm=5"], environ={}))
    teacher = resolved.config.teacher
    assert (teacher.rpd, teacher.tpm, teacher.rpm, teacher.usd_per_10min) == (None, 5, 4000, Decimal(10))
    assert resolved.origins["teacher.rpd"] == resolved.origins["teacher.tpm"] == "--set"
    assert resolved.origins["teacher.rpm"].startswith("preset tier1: gemini-2.5-flash-lite, ")
    assert resolved.origins["teacher.usd_per_10min"].startswith("preset tier1: ")


def test_every_tier_of_a_known_model_has_limits_and_a_stranger_has_none() -> None:
    """A published row counts before a sibling's; a model of no family gets the tier's dollars alone."""
    book = load_prices(PricesConfig())
    for tier in ("free", "tier1", "tier2", "tier3"):
        row = book.limit("gemini-2.5-flash", tier)
        assert row is not None
        assert preset(book, "gemini-2.5-flash", tier)["rpm"][0] == row.rpm
    assert set(preset(book, "another-model", "tier1")) == {"usd_per_10min"}
    assert preset(book, "another-model", "free") == {}
