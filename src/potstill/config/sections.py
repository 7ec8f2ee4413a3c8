"""Sections of the config that say what is bought: the teacher, the budget, and what `generate` asks."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from potstill.workspace import NAME_PATTERN

HUB_NAME = r"^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*/[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*$"
"""`owner/name` on the hub, which takes no two marks in a row."""

SafeName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class TeacherConfig(Section):
    """The hosted model that is distilled."""

    provider: Literal["gemini", "openai"] = Field(
        "gemini", description="Who serves the teacher: Gemini, or any OpenAI-compatible server (vLLM, Ollama, a host)."
    )
    model: str = Field("gemini-3.5-flash-lite", description="Model name, without the `models/` prefix.")
    sdk: Literal["google-genai", "google-generativeai"] = Field(
        "google-genai", description="Client library for Gemini; google-generativeai is its ended predecessor."
    )
    base_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]\S*$",
        description="Another server in place of the provider's own, http(s)://... Also GOOGLE_GEMINI_BASE_URL,"
        " OPENAI_BASE_URL.",
    )
    tier: Literal["free", "tier1", "tier2", "tier3"] = Field(
        "tier1", description="Usage tier of the project; `cost` uses it for quotas and prices."
    )
    rpm: int | None = Field(150, ge=1, description="Requests a minute; null: no pacing by requests.")
    tpm: int | None = Field(None, ge=1, description="Input tokens a minute; null: no pacing by tokens.")
    rpd: int | None = Field(None, ge=1, description="Requests a day (midnight Pacific); null: no daily limit.")
    usd_per_10min: Decimal | None = Field(
        None, gt=0, description="Dollars in any ten minutes, which tiers limit too; null: no pacing by dollars."
    )
    max_concurrency: int = Field(16, ge=1, le=1000, description="Requests in flight at once.")
    timeout_s: float = Field(120, ge=10, le=3600, description="Seconds for one attempt; the server refuses under 10.")
    max_attempts: int = Field(5, ge=1, le=20, description="Attempts at one request before it counts as failed.")
    thinking_budget: int | None = Field(
        0,
        ge=0,
        le=65536,
        description="Thinking tokens allowed per answer; null: the model's default, which has no bound.",
    )
    service: Literal["standard", "flex", "batch"] = Field(
        "standard", description="Service level: standard, flex (half price, slower), batch (half price, within 24 h)."
    )
    flex_fallback: bool = Field(True, description="Send a request at the standard price after flex has shed it twice.")
    batch_size: int = Field(5000, ge=1, le=50000, description="Requests in one batch job; larger runs are split.")
    batch_poll_s: float = Field(30, gt=0, le=3600, description="Seconds between two looks at a batch job.")


class BudgetConfig(Section):
    """How much may be spent."""

    max_usd: Decimal | None = Field(
        None, ge=0, description="Dollars that this workspace may ever spend; null: no limit. Holds by reservation."
    )


class FilterConfig(Section):
    """What is sifted out of the answers. Changing it pays nothing again."""

    min_chars: int = Field(1, ge=0, description="Shorter answers are rejected.")
    max_chars: int | None = Field(None, ge=1, description="Longer answers are rejected; null: no limit.")
    keep_truncated: bool = Field(False, description="Keep answers that hit the token limit.")
    drop_duplicates: bool = Field(True, description="Keep one of several equal answers to one prompt in one role.")
    max_repetition: float = Field(
        0.5, gt=0, le=1, description="Reject an answer of which a larger share is one repeated stretch (a loop)."
    )
    languages: tuple[Literal["en", "zh-TW", "zh-CN"], ...] = Field(
        (), description="Languages that answers may be in, told apart by their characters; empty: any."
    )
    refusals: bool = Field(True, description="Reject answers that begin by refusing, in English or Chinese.")
    leaks: bool = Field(True, description="Reject answers that say their system prompt back, or talk about it.")
    near_duplicates: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Reject an answer this alike (0..1) to one kept for the same prompt and role; null: off.",
    )
    near_duplicate_prompts: float | None = Field(
        None, gt=0, le=1, description="Reject answers to a prompt this alike (0..1) to an earlier one; null: off."
    )
    keep_best: int | None = Field(
        None, ge=1, description="Answers kept for each prompt and role: the judge's best, else the first. null: all."
    )


class SplitConfig(Section):
    """How prompts are dealt to the splits. All samples of one prompt go to one split."""

    validation: float = Field(0.1, ge=0, lt=1, description="Share of prompts held out for validation.")
    test: float = Field(0.1, ge=0, lt=1, description="Share of prompts held out for the verdict.")
    seed: int = Field(0, description="Another seed deals the prompts differently.")
    near_duplicates: float | None = Field(
        0.8,
        gt=0,
        le=1,
        description="Prompts this alike (0..1) share a split, so that none leaks; null: each by itself.",
    )
    largest_group: int = Field(
        20, ge=1, description="Most prompts that share a split for being alike; more of them are made by a template."
    )

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            message = "validation and test together must stay below 1"
            raise ValueError(message)
        return self


class DocumentsConfig(Section):
    """Prompts from documents: the teacher asks what each passage answers."""

    files: tuple[str, ...] = Field((), description="Documents (.txt, .md, .pdf) that prompts are made from.")
    chunk_chars: int = Field(1500, ge=200, le=20000, description="Characters of one passage, at most.")
    overlap_chars: int = Field(150, ge=0, le=5000, description="Characters that a passage repeats of the one before.")
    questions: int = Field(3, ge=1, le=20, description="Questions asked for each passage.")
    ground: bool = Field(False, description="Put the passage into the prompt, so that the answer keeps to it.")


class GrowConfig(Section):
    """A few seed prompts into many."""

    target: int | None = Field(
        None, ge=1, le=100_000, description="Prompts to grow beside the given ones, which are the seeds; null: none."
    )
    method: Literal["self-instruct", "evolve", "both"] = Field(
        "both",
        description="self-instruct: new prompts like some of the pool (arXiv 2212.10560); evolve: one prompt made "
        "harder, more concrete or rarer (arXiv 2304.12244); both: in turn.",
    )
    max_rounds: int = Field(20, ge=1, le=1000, description="Rounds after which growing ends, target reached or not.")
    per_request: int = Field(8, ge=1, le=50, description="Prompts asked for in one self-instruct request.")
    near_duplicates: float = Field(
        0.7, gt=0, le=1, description="A new prompt this alike (0..1) to one of the pool is rejected."
    )
    personas: tuple[str, ...] = Field(
        (), description="Files of people who ask, one a line, or shipped ones by name (everyone.en.txt)."
    )
    temperature: float = Field(1.0, ge=0, le=2, description="Sampling temperature for new prompts.")
    seed: int = Field(0, description="Another seed grows other prompts.")


class FailuresConfig(Section):
    """A second round: more prompts near what a student failed at (LLM2LLM, arXiv 2403.15042)."""

    file: str | None = Field(None, description="A student's folder, its verdict.json or evaluation.jsonl; null: none.")
    target: int = Field(50, ge=1, le=100_000, description="Prompts to ask for, shared out by the clusters' sizes.")
    clusters: int = Field(8, ge=1, le=200, description="Clusters of like failures, at most.")
    near_held_out: float = Field(
        0.5, gt=0, le=1, description="A new prompt this alike (0..1) to a held-out question is rejected."
    )
    max_usd: Decimal | None = Field(
        None, ge=0, description="Dollars that asking for such prompts may ever cost here; null: budget.max_usd alone."
    )


class JudgeConfig(Section):
    """The teacher, or another model, marks answers by a rubric. Marks are in the ledger too: none is paid twice."""

    enabled: bool = Field(False, description="Judge the answers that the other filters keep.")
    rubric: str = Field("rubric", description="Template file, or the shipped template by name.")
    min_score: float = Field(0.75, ge=0, le=1, description="Share of the rubric's points that an answer must meet.")
    model: str | None = Field(None, description="Gemini model that judges; null: teacher.model.")
    max_usd: Decimal | None = Field(
        None, ge=0, description="Dollars that judging may ever cost in this workspace; null: budget.max_usd alone."
    )


class RationaleConfig(Section):
    """How the teacher comes to its answers, asked for beside them. In the ledger too: none is paid for twice."""

    enabled: bool = Field(False, description="Ask for the reasoning behind each answer that is kept.")
    template: str = Field("rationale", description="Template file, or the shipped template by name.")
    max_output_tokens: int = Field(256, ge=1, le=65536, description="Limit of one rationale, in tokens.")


ExportFormat = Literal["openai", "sharegpt", "alpaca", "parquet"]


class GenerateConfig(Section):
    """prompts x roles x samples -> dataset."""

    prompts: tuple[str, ...] = Field((), description="Prompt files (.txt, .jsonl, .yaml); shipped ones by name.")
    roles: tuple[str, ...] = Field(
        ("hardware-expert",), min_length=1, description="Role files, or shipped roles by name."
    )
    samples_per_prompt: int = Field(1, ge=1, le=1000, description="Answers per prompt and role.")
    temperature: float = Field(1.0, ge=0, le=2, description="Sampling temperature of the teacher.")
    max_output_tokens: int = Field(
        1024, ge=1, le=65536, description="Limit of one answer, in tokens; bounds its price."
    )
    truncated_limit: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Limit with which an answer that hit max_output_tokens is asked for once more; null: kept as it is.",
    )
    temperatures: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        (), description="Temperatures that a prompt's samples take in turn; empty: `temperature` for all."
    )
    answer_schema: str | None = Field(
        None, description="JSON Schema file that answers must follow; others are rejected. null: plain text."
    )
    turns: int = Field(
        1, ge=1, le=10, description="Questions in a chat; the teacher plays the user from the second on."
    )
    from_traces: bool = Field(False, description="Add the answers that `infer` paid the teacher for (traces/).")
    export: tuple[ExportFormat, ...] = Field((), description="Forms in which the dataset is written beside its own.")
    push: str | None = Field(
        None,
        pattern=HUB_NAME,
        description="Hugging Face dataset to push to, as owner/name (letters, digits, and single . _ - between them);"
        " the token is HF_TOKEN.",
    )
    documents: DocumentsConfig = Field(DocumentsConfig(), description="Prompts from documents.")
    grow: GrowConfig = Field(GrowConfig(), description="Prompts from prompts.")
    failures: FailuresConfig = Field(FailuresConfig(), description="Prompts near what a student failed at.")
    judge: JudgeConfig = Field(JudgeConfig(), description="Answers marked by a rubric.")
    rationales: RationaleConfig = Field(RationaleConfig(), description="Why the answers are what they are.")
    filters: FilterConfig = Field(FilterConfig(), description="What is sifted out.")
    splits: SplitConfig = Field(SplitConfig(), description="How prompts are dealt to train, validation and test.")

    @model_validator(mode="after")
    def _json_is_one_answer(self) -> GenerateConfig:
        if self.answer_schema is not None and self.turns > 1:
            message = "answer_schema holds for one answer: it goes with turns = 1 only"
            raise ValueError(message)
        return self

    def temperature_of(self, sample: int) -> float:
        """The temperature of a prompt's sample number `sample`."""
        return self.temperatures[sample % len(self.temperatures)] if self.temperatures else self.temperature
