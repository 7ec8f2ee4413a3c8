"""What the emulator can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Fault = Literal[
    "http-500",
    "http-503",
    "bare-429",
    "reset",
    "stall",
    "truncated",
    "empty",
    "no-content",
    "safety",
    "recitation",
    "blocked",
    "thinking-limit",
]


class EmulatorSettings(BaseModel):
    """Everything that changes how the emulator answers. Equal settings and requests give equal answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    faq: str | None = Field(None, description="FAQ file, or the name of a shipped one; without, answers are derived.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(0, ge=0, le=65535, description="Port; 0: any free one.")
    latency_s: float = Field(0.02, ge=0, description="Median seconds of an answer.")
    latency_spread: float = Field(0.3, ge=0, description="Standard deviation of the logarithm of the latency.")
    thinking_tokens: int = Field(0, ge=0, description="Thinking tokens of an answer, held to the request's budget.")
    rpm: int | None = Field(None, ge=0, description="Requests a minute; 0: the model is not in this tier.")
    tpm: int | None = Field(None, ge=1, description="Input tokens a minute.")
    rpd: int | None = Field(None, ge=1, description="Requests a day.")
    minute_s: float = Field(60, gt=0, description="Seconds that a quota's minute lasts.")
    faults: dict[Fault, float] = Field({}, description="Share of requests that end in each fault.")
    stall_s: float = Field(30, ge=0, description="Seconds that a stalled request hangs before it is answered.")
    seed: int = Field(0, description="Another seed draws faults, latencies and derived answers differently.")
    log: str | None = Field(None, description="File for the request log, one JSON line a request.")
    keys: tuple[str, ...] = Field((), repr=False, description="API keys that are accepted; empty: any text.")
