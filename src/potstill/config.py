"""The one config of all commands: frozen data, a description on every field, and where each value came from.

Precedence: flag > `--set` > environment (`POTSTILL__SECTION__KEY`) > file > default. This module is the only reader
of the environment; keys and secrets are kept apart from the config, so that a config can be printed and stored.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo

from potstill.errors import ConfigError
from potstill.workspace import NAME_PATTERN, read_text

ENV_PREFIX = "POTSTILL__"
DEFAULT_FILE = Path("potstill.yaml")
KEY_VARIABLES = {"gemini": ("GOOGLE_API_KEY", "GEMINI_API_KEY"), "openai": ("OPENAI_API_KEY",)}
"""Where each provider's key is looked for, in its SDK's own order."""
BASE_URL_VARIABLES = {"gemini": "GOOGLE_GEMINI_BASE_URL", "openai": "OPENAI_BASE_URL"}
"""Where each provider's SDK looks for another server."""

MIN_SECRET_CHARS = 8
"""Shorter texts are no keys (the emulator takes any), and blanking them would garble every line."""

HUB_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$"
"""`owner/name` on the hub."""

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
        description="Another server in place of the provider's own. Also GOOGLE_GEMINI_BASE_URL, OPENAI_BASE_URL.",
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


class JudgeConfig(Section):
    """The teacher, or another model, marks answers by a rubric. Marks are in the ledger too: none is paid twice."""

    enabled: bool = Field(False, description="Judge the answers that the other filters keep.")
    rubric: str = Field("rubric", description="Template file, or the shipped template by name.")
    min_score: float = Field(0.75, ge=0, le=1, description="Share of the rubric's points that an answer must meet.")
    model: str | None = Field(None, description="Gemini model that judges; null: teacher.model.")
    max_usd: Decimal | None = Field(
        None, ge=0, description="Dollars that judging may ever cost in this workspace; null: budget.max_usd alone."
    )


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
        None, pattern=HUB_NAME, description="Hugging Face dataset (owner/name) to push to; the token is HF_TOKEN."
    )
    documents: DocumentsConfig = Field(DocumentsConfig(), description="Prompts from documents.")
    grow: GrowConfig = Field(GrowConfig(), description="Prompts from prompts.")
    judge: JudgeConfig = Field(JudgeConfig(), description="Answers marked by a rubric.")
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


class StudentConfig(Section):
    """The local model."""

    base: str = Field("meta-llama/Llama-3.2-1B-Instruct", description="Base model: hub name or local folder.")
    revision: str | None = Field(None, description="Hub revision of the base, a commit for reproducible runs.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Weights' type; auto: bfloat16 or float16 by what the card has, float32 on CPU."
    )
    quantization: Literal["none", "nf4"] = Field("none", description="nf4: QLoRA's 4-bit weights (CUDA only).")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: CUDA where there is a GPU, else CPU.")


class LoraSettings(Section):
    """LoRA (arXiv 2106.09685)."""

    r: int = Field(16, ge=1, le=512, description="Rank of the adapters.")
    alpha: int = Field(32, ge=1, description="Scale of the adapters: alpha / r.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout before the adapters; above 0 it costs 60 % more memory."
    )
    target_modules: tuple[str, ...] | Literal["all-linear"] = Field(
        ("q_proj", "v_proj"), description="Layers that get an adapter, or `all-linear`."
    )


class JudgeSettings(Section):
    """The teacher as a judge of the held-out answers; it costs money, so it is off until it has a budget."""

    max_usd: Decimal | None = Field(
        None, gt=0, description="Dollars that judging may spend, within budget.max_usd; null: no judge."
    )
    samples: int = Field(100, ge=1, description="Held-out answers that are compared in pairs, positions swapped.")
    resamples: int = Field(
        50, ge=0, description="Held-out questions that the teacher answers once more: its agreement with itself."
    )


class SoftTargets(Section):
    """A local teacher whose probabilities are learned too (arXiv 1503.02531)."""

    teacher: str | None = Field(
        None, description="Hugging Face model of the student's own vocabulary, hub name or folder; null: none."
    )
    revision: str | None = Field(None, description="Hub revision of that teacher.")
    temperature: float = Field(2.0, gt=0, le=100, description="Softens both sides' probabilities.")
    weight: float = Field(0.5, gt=0, le=1, description="Share of the soft loss; the rest is on the dataset's tokens.")
    divergence: Literal["forward", "reverse", "jsd"] = Field(
        "forward", description="KL of teacher to student, of student to teacher, or Jensen-Shannon."
    )


class DistillConfig(Section):
    """dataset -> LoRA student -> verdict."""

    name: SafeName = Field("student", description="Name of the student, a folder under `students/`.")
    adapters: Literal["shared", "per-role"] = Field("shared", description="One adapter for all roles, or one each.")
    lora: LoraSettings = Field(LoraSettings(), description="The adapters' shape.")
    epochs: float = Field(3, gt=0, le=1000, description="Passes over the training split.")
    batch_size: int = Field(4, ge=1, le=4096, description="Samples in one optimizer step.")
    learning_rate: float | None = Field(None, gt=0, le=1, description="null: chosen by the base's hidden size.")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    max_length: int = Field(1024, ge=8, description="Tokens of one sample; longer ones are cut and counted.")
    tokens_per_batch: int | None = Field(
        None, ge=8, description="Token limit of a micro-batch; longer batches are split and accumulated. null: none."
    )
    activation_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Recompute activations to save memory; auto: once memory runs out, before batches are split.",
    )
    compile: bool = Field(False, description="torch.compile each layer: minutes at the start, worth it on long runs.")
    soft_targets: SoftTargets = Field(SoftTargets(), description="Learning from a local teacher's probabilities.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between evaluations; null: once an epoch.")
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a better loss and keep the best. null: never."
    )
    checkpoint_steps: int = Field(50, ge=1, description="Steps between checkpoints, which a rerun resumes from.")
    seed: int = Field(0, description="Seed of initialisation and data order.")
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field((), description="Where training is also logged.")
    max_new_tokens: int = Field(256, ge=1, description="Limit of one answer in the evaluation.")
    margin: float = Field(
        0.1, ge=0, le=1, description="How far below the teacher the student may score and still replace it."
    )
    near_duplicate: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Held-out questions that resemble a training question this much are left out (4-gram Jaccard).",
    )
    requests_a_day: int = Field(1000, ge=1, description="Traffic by which the verdict counts days to break-even.")
    judge: JudgeSettings = Field(JudgeSettings(), description="The teacher as a judge of held-out answers.")
    gate: bool = Field(False, description="Exit with code 8 when the verdict says that the student cannot replace it.")


class ServeLimits(Section):
    """What one request may ask for, and how many may wait."""

    max_body_bytes: int = Field(1_000_000, ge=1000, description="Largest request body.")
    max_prompt_tokens: int = Field(4096, ge=1, description="Longest prompt.")
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer, and the default where a request names none.")
    max_batch: int = Field(16, ge=1, le=512, description="Requests decoded together.")
    max_queue: int = Field(64, ge=1, description="Requests that may wait; more are answered 503.")
    timeout_s: float = Field(120, gt=0, description="Seconds until a request is given up.")
    body_timeout_s: float = Field(30, gt=0, description="Seconds within which a request's body must have come.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests a minute for each API key; more are answered 429. null: no limit."
    )


class ServeConfig(Section):
    """The OpenAI-compatible server."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on; beyond loopback only with POTSTILL_SERVE_API_KEYS."
    )
    port: int = Field(8017, ge=0, le=65535, description="Port; 0: any free one, printed at the start.")
    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="What runs the student: this process, or vLLM started with the right options."
    )
    log_text: bool = Field(False, description="Write requests' texts and answers to the request log too.")
    limits: ServeLimits = Field(ServeLimits(), description="Limits of a request and of the queue.")


class CacheConfig(Section):
    """Answers served before."""

    encoder: str = Field(
        "all-MiniLM-L6-v2",
        description="sentence-transformers model (name or folder; MiniLM reads English only), or `hashing`.",
    )
    path: str | None = Field(None, description="Folder of the cache; null: `cache/` in the workspace.")
    index: Literal["edge", "local"] = Field(
        "edge", description="Embedded index: Qdrant Edge, or qdrant-client's local mode."
    )
    url: str | None = Field(None, description="A Qdrant server in place of the embedded index.")
    threshold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Cosine similarity from which a cached answer is served. "
        "null: as `infer --calibrate` has set it, 0.95 without a calibration; the source design has 0.85.",
    )
    max_wrong_rate: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share of semantic hits that may be wrong; --calibrate keeps it with 95 % confidence.",
    )
    shadow: bool = Field(
        False, description="Serve no semantic hit, but judge what would have been served, for --calibrate."
    )
    audit_share: float = Field(
        0.0, ge=0, le=1, description="Share of semantic hits that Gemini checks before they are served."
    )
    deadline_s: float = Field(5, gt=0, description="Seconds for reading a question; after them the cache is passed by.")
    max_entries: int | None = Field(
        100_000, ge=1, description="Entries kept; beyond it those go that were used longest ago. null: no limit."
    )
    hash_questions: bool = Field(
        False, description="Keep hashes in place of questions, here and in traces; leaves the exact layer only."
    )
    ttl_s: int | None = Field(
        None, ge=1, description="Seconds until an entry expires; hits do not renew it. null: never."
    )
    namespace: str = Field(
        "default", min_length=1, max_length=200, description="Tenant; entries are never shared across."
    )


class InferConfig(Section):
    """cache -> students -> decide -> store."""

    roles: tuple[str, ...] = Field(
        (), description="Student roles that answer in parallel; empty: all it was trained on."
    )
    decide: Literal["always", "uncertain", "never"] | None = Field(
        None,
        description="When Gemini is asked: always; uncertain (only below the verdict's threshold); never. "
        "null: uncertain where a verdict has calibrated it, else always.",
    )
    decision: Literal["merge", "select", "verify"] = Field(
        "merge",
        description="What Gemini does with the students' answers: write one from them, pick one, check the best.",
    )
    escalate_share: float = Field(
        0.03,
        ge=0,
        le=1,
        description="With `uncertain`: share of the student's sure answers that Gemini sees all the same.",
    )
    teacher_timeout_s: float = Field(
        300, gt=0, description="Seconds for Gemini, retries included; then the student's answer is served."
    )
    student_timeout_s: float = Field(120, gt=0, description="Seconds for the student; then Gemini answers alone.")
    student_url: str | None = Field(None, description="An OpenAI-compatible server in place of the in-process student.")
    max_new_tokens: int = Field(256, ge=1, description="Limit of a student's answer, in tokens.")


class PricesConfig(Section):
    """The price book."""

    file: str | None = Field(
        None,
        description="Price file in place of the shipped one, or on top of it (`extends: current`); "
        "`source-design`: the source design's own figures.",
    )
    overrides: dict[str, dict[str, Decimal]] = Field(
        {},
        description="model -> {input, output, cached_input}: dollars per million tokens, over the book; "
        "batch_input, flex_output and so on for one service.",
    )
    tokenizer: str | None = Field(
        None,
        description="A tokenizer.json, or its folder, to count prompts with; null: a formula. See `cost estimate`.",
    )
    currency: str = Field("USD", pattern="^[A-Z]{3}$", description="Currency for display; all sums are dollars.")
    rate: Decimal | None = Field(None, gt=0, description="Units of `currency` for a dollar. None is built in.")


class Config(Section):
    """Everything that potstill can be told."""

    workspace: str = Field("workspace", min_length=1, description="Folder for everything that potstill makes.")
    language: Literal["en", "zh-TW"] = Field("en", description="Language of the roles' system prompts and templates.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="The hosted model.")
    budget: BudgetConfig = Field(BudgetConfig(), description="How much may be spent.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Making the dataset.")
    student: StudentConfig = Field(StudentConfig(), description="The local model.")
    distill: DistillConfig = Field(DistillConfig(), description="Training the student.")
    serve: ServeConfig = Field(ServeConfig(), description="Serving the student.")
    cache: CacheConfig = Field(CacheConfig(), description="Answers served before.")
    infer: InferConfig = Field(InferConfig(), description="The hybrid router.")
    prices: PricesConfig = Field(PricesConfig(), description="The price book.")


@dataclass(frozen=True)
class Secrets:
    """Keys from the environment; never part of the config, never printed.

    `unused_keys` belong to other providers, or are outranked: kept only so that they can be blanked too.
    """

    teacher_key: SecretStr | None = None
    teacher_key_variable: str | None = None
    serve_keys: tuple[SecretStr, ...] = ()
    serve_admin_keys: tuple[SecretStr, ...] = ()
    unused_keys: tuple[SecretStr, ...] = ()
    hub_token: SecretStr | None = None

    def redact(self, text: str) -> str:
        """Blank every secret in a text that is about to be shown."""
        own = (*self.serve_keys, *self.serve_admin_keys, *self.unused_keys)
        for secret in (self.teacher_key, self.hub_token, *own):
            if secret is not None and len(secret.get_secret_value()) >= MIN_SECRET_CHARS:
                text = text.replace(secret.get_secret_value(), "[redacted]")
        return text


@dataclass(frozen=True)
class Resolved:
    """A config with the origin of every value, e.g. `{"teacher.rpm": "file potstill.yaml"}`."""

    config: Config
    origins: Mapping[str, str]
    secrets: Secrets = field(default_factory=Secrets)


def resolve(
    file: Path | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Read the config from its four sources.

    `settings` are `--set` texts (`section.key=value`, value in YAML); `flags` maps a key to (flag name, value);
    `environ` stands in for the process environment. Raises ConfigError naming the key and its source.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value, origin in _sources(file, settings, flags or {}, environ):
        _put(values, key, value, origin)
        origins[key] = origin
    variable = BASE_URL_VARIABLES.get(str(values.get("teacher", {}).get("provider", "gemini")), "")
    if _weak(origins.get("teacher.base_url")) and environ.get(variable):
        _put(values, "teacher.base_url", environ[variable], f"environment {variable}")
        origins["teacher.base_url"] = f"environment {variable}"
    config = _validated(values, origins)
    return Resolved(config, _leaf_origins(config, origins), read_secrets(environ, config.teacher.provider))


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The config as `{"section.key": value}`, in the order of its fields."""
    leaves: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def field_of(key: str) -> FieldInfo:
    """The declaration of a dotted key: its description, type and default."""
    section: type[BaseModel] = Config
    *names, last = key.split(".")
    for name in names:
        section = type(section.model_fields[name].default)
    return section.model_fields[last]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the config file, for editors."""
    schema = Config.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "potstill.yaml"}


def with_values(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A copy with some values of some sections changed, validated as a file would be."""
    data = config.model_dump()
    for section, changes in sections.items():
        data[section] = {**data[section], **changes}
    return Config.model_validate(data)


def _sources(
    file: Path | None, settings: Sequence[str], flags: Mapping[str, tuple[str, Any]], environ: Mapping[str, str]
) -> list[tuple[str, Any, str]]:
    """All given values as (key, value, origin), the weakest source first."""
    found = [*_from_file(file), *_from_environment(environ)]
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            message = f"--set {text!r} is not of the form section.key=value"
            raise ConfigError(message)
        found.append((key.strip(), _yaml(value, f"--set {key}"), "--set"))
    found += [(key, value, flag) for key, (flag, value) in flags.items()]
    return found


def _from_file(file: Path | None) -> list[tuple[str, Any, str]]:
    if file is None and not DEFAULT_FILE.is_file():
        return []
    path = file or DEFAULT_FILE
    data = _yaml(read_text(path, "config file"), str(path))
    if data is None:
        return []
    if not isinstance(data, dict):
        message = f"{path}: a config file holds `section:` blocks, not a {type(data).__name__}"
        raise ConfigError(message)
    return [(key, value, f"file {path}") for key, value in _leaves(data)]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            found.append((key, _yaml(environ[name], name), f"environment {name}"))
    return found


def _weak(origin: str | None) -> bool:
    """Whether a provider's own variable outranks where a value is from: nowhere, or a file."""
    return origin is None or origin.startswith("file ")


def _leaves(data: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested mapping by dotted key; a mapping that is itself a value (overrides) stays whole."""
    known = flatten(Config())
    found: list[tuple[str, Any]] = []
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in known:
            found += _leaves(value, f"{key}.")
        elif value is not None or key in known or not _is_section(key, known):
            found.append((key, value))
    return found


def _put(values: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key; raises ConfigError for a key that the config does not have."""
    _check_key(key, origin)
    *sections, name = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value


def _check_key(key: str, origin: str) -> None:
    known = flatten(Config())
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    last = key.rsplit(".", 1)[-1]
    near = near or [leaf for leaf in known if leaf.rsplit(".", 1)[-1] == last][:1]
    message = f"unknown config key {key!r} ({origin})"
    if _is_section(key, known):
        message = f"config key {key!r} is a section, not a value ({origin})"
    raise ConfigError(message, hint=f"did you mean {near[0]!r}?" if near else "`potstill init` writes all keys")


def _is_section(key: str, known: Mapping[str, Any]) -> bool:
    return any(leaf.startswith(f"{key}.") for leaf in known)


def _validated(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"])
            origin = next((origins[known] for known in origins if key.startswith(known)), "config")
            problems.append(f"{key}: {item['msg']}, got {item['input']!r} ({origin})")
        raise ConfigError("; ".join(problems)) from error


def _leaf_origins(config: Config, origins: Mapping[str, str]) -> dict[str, str]:
    return {key: origins.get(key, "default") for key in flatten(config)}


def read_secrets(environ: Mapping[str, str] | None = None, provider: str = "gemini") -> Secrets:
    """The keys in the environment: the teacher's (GOOGLE_API_KEY wins, as in the SDK), the server's own, the hub's."""
    environ = os.environ if environ is None else environ
    variable = next((name for name in KEY_VARIABLES[provider] if environ.get(name)), None)
    unused = [environ.get(name) for names in KEY_VARIABLES.values() for name in names if name != variable]
    return Secrets(
        teacher_key=SecretStr(environ[variable]) if variable else None,
        teacher_key_variable=variable,
        serve_keys=_keys(environ.get("POTSTILL_SERVE_API_KEYS", "")),
        serve_admin_keys=_keys(environ.get("POTSTILL_SERVE_ADMIN_KEYS", "")),
        unused_keys=tuple(SecretStr(key) for key in unused if key),
        hub_token=SecretStr(environ["HF_TOKEN"]) if environ.get("HF_TOKEN") else None,
    )


def _keys(text: str) -> tuple[SecretStr, ...]:
    return tuple(SecretStr(key.strip()) for key in text.split(",") if key.strip())


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        message = f"{origin}{where}: {problem}"
        raise ConfigError(message) from error
