"""LoRA training through the Hugging Face Trainer and PEFT, with checkpoints that a rerun goes on from.

The Trainer keeps the schedule, the optimizer, the checkpoints and the launchers; what one step computes is `engine`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from potstill.config import DistillConfig, StudentConfig
from potstill.distill.data import Rows
from potstill.distill.engine import Engine, Objective, choose_checkpointing, cross_entropy, use_packing
from potstill.distill.on_policy import Refresh
from potstill.distill.oom import Admit, TokenLimit, admit_all, machine_name
from potstill.distill.packing import Document
from potstill.distill.progress import Follow
from potstill.distill.resume import STATE, last_checkpoint, load_best, own_checkpoints, save_adapter, stopped_early
from potstill.distill.sharding import is_sharded
from potstill.distill.trainer import Splits, lora_trainer
from potstill.errors import ConfigError
from potstill.student.base import load_base, pick_device, pick_dtype
from potstill.student.onednn import pack as pack_weights

MAX_LEARNING_RATE = 1e-2
LLAMA_POWER, QWEN_POWER = 0.781, 0.0775
LOGGING_STEPS = 10


@dataclass(frozen=True)
class Job:
    """One training run: what, on which rows, and where its checkpoints and its adapter go.

    `objective` makes what is minimised from the base; `admit` may refuse a micro-batch (see `oom`); `refresh`
    makes, from the PEFT model, what may change a step's documents (see `on_policy`). `load` loads the base.
    """

    distill: DistillConfig
    train: Rows
    validation: Rows
    checkpoints: Path
    adapter: Path
    plan_id: str
    objective: Callable[[Any], Objective] = cross_entropy
    admit: Admit = admit_all
    refresh: Callable[[Any], Refresh] | None = None
    load: Callable[[StudentConfig], Any] = load_base


def train(config: StudentConfig, job: Job, follow: Follow) -> list[dict[str, float]]:
    """Train one adapter and save it in PEFT format; gives the trainer's log of losses.

    LoRA: arXiv 2106.09685. A run that was cut off goes on from its last checkpoint where the plan is the same one;
    another plan's checkpoints are removed first. Started by `accelerate launch` or `torchrun`, the processes share
    each step's samples, and the first one writes.
    """
    from transformers import TrainerState, set_seed

    arguments = trainer_arguments(config, job)
    with arguments.main_process_first():
        own_checkpoints(job.checkpoints, job.plan_id)
    set_seed(job.distill.seed)
    base = job.load(config)
    use_packing(base)
    shape = base.config.get_text_config()
    learning_rate = job.distill.learning_rate or default_learning_rate(shape.hidden_size, shape.model_type)
    arguments.learning_rate = learning_rate
    engine = _engine(base, job)
    splits = Splits(_questions(job.train), [Document.of(row) for row in job.validation.rows])
    trainer = lora_trainer(engine, job.distill, arguments, splits, follow)
    checkpoint = last_checkpoint(job.checkpoints)
    if checkpoint is not None and stopped_early(checkpoint, job.distill.early_stopping):
        trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        load_best(job.checkpoints, engine.model)
        save_adapter(job.adapter, engine.model)
    trainer.accelerator.wait_for_everyone()
    return [dict(entry) for entry in trainer.state.log_history]


def trainer_arguments(config: StudentConfig, job: Job) -> Any:
    """The Trainer's settings; making them starts the process group, where a launcher started several processes."""
    import torch
    from transformers import TrainingArguments

    distill, device = job.distill, pick_device(config)
    dtype = pick_dtype(config, device)
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        num_train_epochs=distill.epochs,
        warmup_steps=distill.warmup_ratio,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        logging_steps=LOGGING_STEPS,
        logging_nan_inf_filter=False,  # it waits for the card at each step
        eval_strategy="no" if not job.validation.rows else ("steps" if distill.eval_steps else "epoch"),
        eval_steps=distill.eval_steps,
        save_strategy="steps",
        save_steps=distill.checkpoint_steps,
        save_total_limit=1,
        seed=distill.seed,
        use_cpu=device == "cpu",
        bf16=device == "cuda" and dtype == torch.bfloat16,
        fp16=device == "cuda" and dtype == torch.float16,
        dataloader_pin_memory=False,  # batches are made on the device
        disable_tqdm=True,
        report_to=list(distill.report_to) or "none",
        remove_unused_columns=False,
    )
    arguments.per_device_train_batch_size = math.ceil(distill.batch_size / arguments.world_size)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001  (several cards need a launcher, not DataParallel)
    return arguments


def lora_model(base: Any, distill: DistillConfig) -> Any:
    """The base with new adapters; on a 16-bit base they are float32, and autocast takes care of the difference.

    Raises ConfigError for target modules that the base has none of.
    """
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    lora = distill.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_outside_decoder(base),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a property by its former name
        try:
            model = get_peft_model(base, settings)
        except NoMatchingPeftModuleError as error:
            message = f"distill.lora.target_modules: this base has no {' or '.join(targets)}"
            raise ConfigError(message, hint=f"it has {', '.join(_linear_names(base))}; or all-linear") from error
    if base.device.type == "cuda" and base.dtype != torch.float32:
        _keep_inputs(model)
    return model


def _keep_inputs(model: Any) -> None:
    """Let adapters take their input as it is: autocast brings them to its type.

    PEFT would bring the input to float32 first, and a 16-bit copy of that would be kept for each layer: 15 % of all
    activations, to the same result.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def _linear_names(base: Any) -> list[str]:
    """What the linear layers of the decoder are called."""
    import torch

    modules = base.get_decoder().named_modules()
    return sorted({name.rpartition(".")[2] for name, module in modules if isinstance(module, torch.nn.Linear)})


def _outside_decoder(base: Any) -> str | None:
    """What never sees a token, as a pattern: the vision tower of a base such as Gemma 3's 4B; None where all of it does."""
    if base.config.get_text_config() is base.config:
        return None
    decoder = base.get_decoder()
    name = next(name for name, module in base.named_modules() if module is decoder)
    return rf"(?!{name}\.).*"


def default_learning_rate(hidden: int, family: str = "llama") -> float:
    """Learning rate of adapters by hidden size and family of the base.

    10 * 5e-5 * (2000 / hidden)^p, which tinker-cookbook fitted: p 0.0775 for Qwen, 0.781 for Llama, which stands for
    every other family too; at most 0.01.
    """
    power = QWEN_POWER if family.startswith("qwen") else LLAMA_POWER
    return float(min(MAX_LEARNING_RATE, 5e-4 * (2000 / hidden) ** power))


def _engine(base: Any, job: Job) -> Engine:
    """Adapters on the base, and what one step computes."""
    model = lora_model(base, job.distill)
    if job.distill.compile:
        compile_layers(base)
    rounds = not job.distill.compile and pack_weights(base, backward=True)
    limit = TokenLimit.load(
        job.checkpoints / "limit.json", job.distill.tokens_per_batch, machine_name(next(base.parameters()).device)
    )
    dropout = job.distill.lora.dropout > 0
    engine = Engine(model, job.objective(base), limit, admit=job.admit, dropout=dropout, rounds=rounds)
    engine.sharded = is_sharded(base)
    if job.refresh is not None:
        engine.refresh = job.refresh(model)
    choose_checkpointing(engine, job.distill.activation_checkpointing)
    return engine


def compile_layers(base: Any) -> None:
    """Compile each decoder layer; attention stays as it is, because its shapes change with every batch."""
    for layer in base.get_decoder().layers:
        layer.compile(dynamic=True)


def _questions(rows: Rows) -> list[tuple[Document, ...]]:
    """What one step learns of each sample: its answer, and its rationale where there is one."""

    def second(place: int) -> tuple[Document, ...]:
        row = rows.rationales.get(place)
        return () if row is None else (replace(Document.of(row), weight=rows.rationale_weight),)

    return [(Document.of(row), *second(place)) for place, row in enumerate(rows.rows)]
