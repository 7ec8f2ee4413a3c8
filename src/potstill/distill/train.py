"""LoRA training through the Hugging Face Trainer and PEFT, with checkpoints that a rerun goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.config import DistillConfig
from potstill.distill.data import Rows
from potstill.student.base import load_base

MAX_LEARNING_RATE = 1e-2
Follow = Callable[[int, int, float], None]
"""Progress: step, steps in all, loss."""


@dataclass(frozen=True)
class Job:
    """One training run: what, on which rows, and where its checkpoints and its adapter go."""

    distill: DistillConfig
    train: Rows
    validation: Rows
    checkpoints: Path
    adapter: Path
    plan_id: str


def train(config: Any, tokenizer: Any, job: Job, follow: Follow) -> list[dict[str, float]]:
    """Train one adapter and save it in PEFT format; gives the trainer's log of losses.

    LoRA: arXiv 2106.09685. A run that was cut off goes on from its last checkpoint where the plan is the same one;
    another plan's checkpoints are removed first.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
    from transformers.trainer_utils import get_last_checkpoint

    class Told(TrainerCallback):  # type: ignore[misc]
        """Passes the trainer's log on."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002  (the base's signature)
            if logs and "loss" in logs:
                follow(state.global_step, state.max_steps, float(logs["loss"]))

    _own_checkpoints(job)
    set_seed(job.distill.seed)
    base = load_base(config)
    lora = job.distill.lora
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    model = get_peft_model(
        base,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )
    on_cpu = base.device.type == "cpu"
    micro, accumulate = micro_batch(job.distill, job.train)
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        num_train_epochs=job.distill.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        learning_rate=job.distill.learning_rate or default_learning_rate(base.config.hidden_size),
        warmup_steps=job.distill.warmup_ratio,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        logging_steps=10,
        eval_strategy="no" if not job.validation.rows else ("steps" if job.distill.eval_steps else "epoch"),
        eval_steps=job.distill.eval_steps,
        save_strategy="steps",
        save_steps=job.distill.checkpoint_steps,
        save_total_limit=1,
        seed=job.distill.seed,
        use_cpu=on_cpu,
        bf16=base.dtype == torch.bfloat16,
        fp16=base.dtype == torch.float16,
        activation_checkpointing=not on_cpu,
        dataloader_pin_memory=not on_cpu,
        disable_tqdm=True,
        report_to=list(job.distill.report_to) or "none",
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=job.train.rows,
        eval_dataset=job.validation.rows or None,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[Told()],
    )
    trainer.pop_callback(_printer())
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(job.checkpoints)))
    model.save_pretrained(str(job.adapter), safe_serialization=True)
    return [dict(entry) for entry in trainer.state.log_history]


class Collator:
    """Pads a batch on the right to its longest row; labels of padding are not learned."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Give `input_ids`, `labels` and `attention_mask`, each of shape (rows, longest)."""
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        gaps = [width - len(row["input_ids"]) for row in rows]
        return {
            "input_ids": torch.tensor(
                [row["input_ids"] + [self._pad] * gap for row, gap in zip(rows, gaps, strict=True)]
            ),
            "labels": torch.tensor([row["labels"] + [-100] * gap for row, gap in zip(rows, gaps, strict=True)]),
            "attention_mask": torch.tensor(
                [[1] * len(row["input_ids"]) + [0] * gap for row, gap in zip(rows, gaps, strict=True)]
            ),
        }


def micro_batch(distill: DistillConfig, rows: Rows) -> tuple[int, int]:
    """Samples decoded at once, and how many such steps make one optimizer step; their product is the batch size."""
    longest = max(len(row["input_ids"]) for row in rows.rows)
    room = distill.batch_size if distill.tokens_per_batch is None else max(1, distill.tokens_per_batch // longest)
    micro = next(size for size in range(min(room, distill.batch_size), 0, -1) if distill.batch_size % size == 0)
    return micro, distill.batch_size // micro


def default_learning_rate(hidden: int) -> float:
    """Learning rate of adapters by the hidden size of the base.

    10 * 5e-5 * (2000 / hidden)^0.781, which tinker-cookbook fitted for Llama; at most 0.01.
    """
    return float(min(MAX_LEARNING_RATE, 5e-4 * (2000 / hidden) ** 0.781))


def _own_checkpoints(job: Job) -> None:
    """Keep the whole checkpoints of this very plan; remove another's, and one that a kill left half written."""
    mark = job.checkpoints / "plan.txt"
    if not mark.is_file() or mark.read_text("utf-8") != job.plan_id:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
        job.checkpoints.mkdir(parents=True)
        mark.write_text(job.plan_id, "utf-8")
    for folder in job.checkpoints.glob("checkpoint-*"):
        if not (folder / "trainer_state.json").is_file():  # the last file of a checkpoint to be written
            shutil.rmtree(folder)


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback
