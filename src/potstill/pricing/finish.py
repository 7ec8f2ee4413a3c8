"""How long a run takes under every limit at once: requests, tokens, dollars, the day's quota, the batch queue. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

DAY_S = 86_400.0
MINUTE_S = 60.0
TEN_MINUTES_S = 600.0


@dataclass(frozen=True)
class Rates:
    """What holds a run back; None: no such limit, or none that is known.

    `rpm`, `rpd`: requests a minute and a day; `tpm`: input tokens a minute; `usd_per_10_min`: the tier's spend limit;
    `monthly_cap_usd`: the tier's cap; `enqueued_tokens`: batch tokens that may wait; `concurrency` and `latency_s`:
    requests in flight, and seconds of one.
    """

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None
    usd_per_10_min: Decimal | None = None
    monthly_cap_usd: Decimal | None = None
    enqueued_tokens: int | None = None
    concurrency: int | None = None
    latency_s: float | None = None


@dataclass(frozen=True)
class Finish:
    """Seconds until a run is done, the limit that decides, the seconds that each limit alone would take, and a warning."""

    seconds: float
    limit: str
    by_limit: dict[str, float]
    warning: str = ""


def time_to_finish(requests: int, input_tokens: int, usd: Decimal, rates: Rates) -> Finish:
    """The slowest limit decides. A day's quota is used up at once each day, so N days take N-1 days and the rest."""
    by_limit = {
        "rpm": requests / rates.rpm * MINUTE_S if rates.rpm else None,
        "tpm": input_tokens / rates.tpm * MINUTE_S if rates.tpm else None,
        "usd_per_10_min": float(usd / rates.usd_per_10_min) * TEN_MINUTES_S if rates.usd_per_10_min else None,
        "concurrency": _in_flight(requests, rates),
    }
    found = {name: seconds for name, seconds in by_limit.items() if seconds is not None}
    if rates.rpd and requests:
        days = math.ceil(requests / rates.rpd)
        last = requests - (days - 1) * rates.rpd
        found["rpd"] = (days - 1) * DAY_S + (last / rates.rpm * MINUTE_S if rates.rpm else 0.0)
    return _slowest(found, _cap_warning(usd, rates))


def batch_to_finish(input_tokens: int, usd: Decimal, rates: Rates, target_hours: int = 24) -> Finish:
    """Batch mode: one target time for each filling of the queue, one after the other."""
    waves = math.ceil(input_tokens / rates.enqueued_tokens) if rates.enqueued_tokens else 1
    seconds = max(1, waves) * target_hours * 3600.0 if input_tokens else 0.0
    return _slowest({"batch target": seconds}, _cap_warning(usd, rates))


def _in_flight(requests: int, rates: Rates) -> float | None:
    if rates.concurrency is None or rates.latency_s is None:
        return None
    return math.ceil(requests / rates.concurrency) * rates.latency_s


def _slowest(by_limit: dict[str, float], warning: str) -> Finish:
    if not by_limit:
        return Finish(0.0, "no limit is known", {}, warning)
    limit = max(by_limit, key=lambda name: by_limit[name])
    return Finish(by_limit[limit], limit, by_limit, warning)


def _cap_warning(usd: Decimal, rates: Rates) -> str:
    if rates.monthly_cap_usd is None or usd <= rates.monthly_cap_usd:
        return ""
    return f"${usd:.2f} is above the tier's cap of ${rates.monthly_cap_usd:f} a month"
