"""What the emulator can be told."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fault = Literal[
    "http-400",
    "http-403",
    "http-500",
    "http-503",
    "http-504",
    "bare-429",
    "flex-503",
    "flex-429",
    "minute-429",
    "daily-429",
    "zero-429",
    "spend-429",
    "reset",
    "disconnect",
    "unbilled",
    "stall",
    "slow",
    "truncated",
    "mid-stream",
    "empty",
    "no-content",
    "safety",
    "recitation",
    "unknown-finish",
    "blocked",
    "thinking-limit",
    "repetition",
    "batch-lost",
    "batch-503",
    "batch-stuck",
    "batch-failed",
    "batch-expired",
]
Share = Annotated[float, Field(ge=0, le=1)]
Tier = Literal["free", "tier1", "tier2", "tier3"]


class EmulatorSettings(BaseModel):
    """Everything that changes how the emulator answers. Equal settings and requests give equal answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    faq: str | None = Field(None, description="FAQ file, or the name of a shipped one; without, answers are derived.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port; 0: any free one.")
    latency_s: float = Field(0.02, ge=0, description="Median seconds of an answer.")
    latency_spread: float = Field(0.3, ge=0, description="Standard deviation of the logarithm of the latency.")
    answer_tokens: int | None = Field(
        None, ge=1, description="Median tokens of a derived answer; null: one sentence. FAQ answers keep their length."
    )
    answer_spread: float = Field(0.0, ge=0, description="Standard deviation of the logarithm of the answer's length.")
    thinking_tokens: int = Field(0, ge=0, description="Median thinking tokens, held to the request's budget.")
    thinking_spread: float = Field(0.0, ge=0, description="Standard deviation of the logarithm of the thinking.")
    tier: Tier = Field("free", description="Usage tier that the quotas' names speak of.")
    rpm: int | None = Field(None, ge=0, description="Requests a minute and model; 0: the model is not in this tier.")
    tpm: int | None = Field(None, ge=1, description="Input tokens a minute and model.")
    rpd: int | None = Field(None, ge=1, description="Requests a day and model.")
    spend_usd: Decimal | None = Field(None, gt=0, description="Dollars in ten minutes, over all models.")
    minute_s: float = Field(60, gt=0, description="Seconds that a quota's minute lasts.")
    day_s: float | None = Field(None, gt=0, description="Seconds that a quota's day lasts; null: to midnight Pacific.")
    faults: dict[Fault, Share] = Field({}, description="Share of requests, lines or jobs that end in each fault.")
    stall_s: float = Field(30, ge=0, description="Seconds that a stalled or slow request takes.")
    batch_pending_s: float = Field(0.05, ge=0, description="Seconds that a batch waits before it runs.")
    batch_s: float = Field(0.2, ge=0, description="Seconds that a batch runs.")
    batch_expiry_s: float = Field(172_800, gt=0, description="Seconds after which an unfinished batch expires.")
    batch_partial: bool = Field(
        default=False, description="Whether a cancelled or expired batch hands out what it finished."
    )
    batch_jobs: int = Field(100, ge=1, description="Batches that may be unfinished at once.")
    batch_tokens: int | None = Field(
        None, ge=1, description="Input tokens that unfinished batches of a model may hold."
    )
    seed: int = Field(0, description="Another seed draws faults, latencies and derived answers differently.")
    log: str | None = Field(None, description="File for the request log, one JSON line a request.")
    keys: tuple[str, ...] = Field((), repr=False, description="API keys that are accepted; empty: any text.")
