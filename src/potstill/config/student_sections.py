"""Sections of the config about a model of one's own: the student, training, serving, the cache and the router."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import Field, model_validator

from potstill.config.sections import SafeName, Section


class StudentConfig(Section):
    """The local model."""

    base: str = Field("meta-llama/Llama-3.2-1B-Instruct", description="Base model: hub name or local folder.")
    revision: str | None = Field(None, description="Hub revision of the base, a commit for reproducible runs.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="Weights' type; auto: bfloat16 or float16 by what the card has, float32 on CPU (docs/serve.md).",
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
    on_policy: float = Field(
        0.0, ge=0, le=1, description="Share of answers that the student writes itself for that teacher to score (GKD)."
    )
    max_new_tokens: int = Field(128, ge=1, description="Limit of an answer that the student writes itself.")

    @model_validator(mode="after")
    def _scored(self) -> SoftTargets:
        if self.on_policy and self.teacher is None:
            message = "on_policy needs soft_targets.teacher, which scores what the student writes"
            raise ValueError(message)
        return self


class RationaleTask(Section):
    """The teacher's reasoning as a second task in training (arXiv 2305.02301); the student is served without it."""

    weight: float | None = Field(
        None,
        gt=0,
        le=10,
        description="Weight of the rationales' loss beside the answers', each a mean over its tokens; null: not learned.",
    )
    template: str = Field("explain", description="What asks the student for a rationale: a file, or a shipped one.")


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
    rationale: RationaleTask = Field(
        RationaleTask(), description="Learning the teacher's reasoning beside its answers."
    )
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
    idle_timeout_s: float = Field(
        20,
        gt=0,
        description="Seconds until a connection is closed that brings no whole request head, or whose client does "
        "not read its answer (then at most twice as many).",
    )
    max_connections: int = Field(
        4096, ge=1, description="Connections at once; at most half the files that the system lets a process open."
    )
    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests a minute for each API key; more are answered 429. null: no limit."
    )


class ServeConfig(Section):
    """The OpenAI-compatible server."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on; beyond loopback only with POTSTILL_SERVE_API_KEYS."
    )
    port: int = Field(8017, ge=0, le=65535, description="Port; 0: any free one, printed at the start.")
    engine: Literal["transformers", "vllm", "ollama", "llama.cpp"] = Field(
        "transformers",
        description="What runs the student: this process, or vLLM started with the right options; for ollama and "
        "llama.cpp `--print-command` shows the lines that serve an exported student.",
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
    url: str | None = Field(
        None, description="A Qdrant server in place of the embedded index. Its key: POTSTILL_QDRANT_API_KEY."
    )
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
    cross_encoder: str | None = Field(
        None,
        description="CrossEncoder of sentence-transformers (name or folder) that --calibrate tries as well; null: none.",
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
    student_url: str | None = Field(
        None,
        description="An OpenAI-compatible server in place of the in-process student, one model a role; up to and with /v1. "
        "Its key: POTSTILL_STUDENT_API_KEY.",
    )
    max_new_tokens: int = Field(256, ge=1, description="Limit of a student's answer, in tokens.")
