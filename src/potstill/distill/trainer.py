"""The Trainer of transformers around the engine: its schedule and checkpoints, our steps, losses and progress."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.config import DistillConfig
from potstill.distill.engine import Engine
from potstill.distill.packing import Document
from potstill.distill.progress import Follow, Meter, Progress, peak_flops
from potstill.distill.resume import save_best, stop_early, validation_losses


@dataclass(frozen=True)
class Splits:
    """What is trained on, the documents of one sample together, and documents whose loss is watched."""

    train: Sequence[tuple[Document, ...]]
    validation: Sequence[Document]


def lora_trainer(engine: Engine, distill: DistillConfig, arguments: Any, splits: Splits, follow: Follow) -> Any:
    """A Trainer whose batches are documents and whose steps are the engine's."""
    import torch
    from transformers import Trainer
    from transformers.trainer_utils import EvalLoopOutput

    base = engine.model.get_base_model()
    meter = Meter(base.num_parameters(), peak_flops(base.device))

    class LoraTrainer(Trainer):  # type: ignore[misc]
        """One batch is one optimizer step of this process."""

        def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
            """Keep DDP away where there are several processes, by a wrapper of no effect: the engine adds up the gradients."""
            return torch.nn.ModuleDict({"module": model}) if training and arguments.world_size > 1 else model

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            """Fill the gradients from a list of samples."""
            model.train()
            own = inputs[: left_of_epoch(len(splits.train), self.state.global_step, arguments)]
            return engine.step(engine.refresh(_flat(own)))

        def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
            """The next batches; their tokens are counted by the engine."""
            return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None

        def floating_point_ops(self, inputs: Any) -> float:
            """Left to the progress meter."""
            return 0.0

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            """Log, with the speed since the last time, which then reaches TensorBoard and W&B too."""
            if "loss" in logs:
                rate, mfu = meter.read(engine.tokens_seen)
                logs |= {"tokens_per_s": rate} | ({} if mfu is None else {"mfu": mfu})
            super().log(logs, start_time)

        def evaluation_loop(self, dataloader: Any, description: str, *_: Any, **named: Any) -> Any:
            """Loss a token over this process's share of the validation documents, summed over all."""
            prefix = named.get("metric_key_prefix", "eval")
            self.model.eval()
            total, mass = engine.evaluate(_batches(splits.validation, arguments))
            metrics = {f"{prefix}_loss": total / max(mass, 1e-9)}
            return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(splits.validation))

    trainer = LoraTrainer(
        model=engine.model,
        args=arguments,
        train_dataset=list(splits.train),
        eval_dataset=list(splits.validation) or None,
        data_collator=list,
        callbacks=_callbacks(engine, distill, splits, follow),
    )
    trainer.pop_callback(_printer())
    engine.accelerator = trainer.accelerator
    return trainer


def left_of_epoch(samples: int, step: int, arguments: Any) -> int:
    """How many samples an epoch still has for this process; what its data loader gives beyond them repeats the first ones."""
    size, world = int(arguments.per_device_train_batch_size), int(arguments.world_size)
    steps = math.ceil(samples / (size * world))
    return max(0, samples - (step % steps * world + int(arguments.process_index)) * size)


def _flat(questions: Sequence[tuple[Document, ...]]) -> list[Document]:
    """The documents of some samples."""
    return list(chain.from_iterable(questions))


def _batches(documents: Sequence[Document], arguments: Any) -> Iterator[Sequence[Document]]:
    """The share of this process, in batches."""
    own = documents[arguments.process_index :: arguments.world_size]
    size = arguments.per_device_train_batch_size
    return (own[start : start + size] for start in range(0, len(own), size))


def _callbacks(engine: Engine, distill: DistillConfig, splits: Splits, follow: Follow) -> list[Any]:
    """Progress, the probe before training, and the best adapter with early stopping."""
    from transformers import TrainerCallback

    class Told(TrainerCallback):  # type: ignore[misc]
        """Passes the trainer's log on."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs and state.is_world_process_zero:
                steps = (state.global_step, state.max_steps)
                follow(Progress(*steps, float(logs["loss"]), logs["tokens_per_s"], logs.get("mfu")))

    class Probed(TrainerCallback):  # type: ignore[misc]
        """Tries the longest batch first, so that memory runs out now and not in the middle."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if engine.model.device.type == "cuda":
                widest = max(len(each) for each in splits.train)
                engine.probe(_flat(splits.train), args.per_device_train_batch_size * widest)

    class KeptBest(TrainerCallback):  # type: ignore[misc]
        """Keeps the adapter with the lowest validation loss, and stops when none comes any more."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            losses = validation_losses(state.log_history)
            if state.is_world_process_zero and losses[-1] == min(losses):
                save_best(Path(args.output_dir), engine.model)
            control.should_training_stop |= stop_early(losses, distill.early_stopping or len(losses))

    return [Told(), Probed(), *([KeptBest()] if distill.early_stopping else [])]


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback
