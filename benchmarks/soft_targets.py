"""What a local teacher's probabilities bring, and what it brings that the student writes for itself.

    python benchmarks/soft_targets.py [--seeds 3] [--texts 32]

Teacher and student are small Llama shapes that were pretrained on a language whose rules are known: after a word, four
words may follow, and which ones depends on the topic that a text begins with. The student, two thirds as wide, has learned
a dialect, in which other words follow after three pairs of topic and word in ten. It then learns from a few texts that the
teacher wrote, by the stage's own LoRA training: from the texts alone (several settings, of which the best on the held-out
texts counts, in favour of this yardstick), from the teacher's probabilities, and from what it writes itself (GKD).

Measured on topics and first words as they come, none of it trained on: nats a token of new texts of the teacher; at how
many places both find the same word likeliest; how many of the words that the student writes the language allows; and how
far the student's own texts are from the teacher (log p_student - log p_teacher, nats a token): what exposure bias spoils.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.config import DistillConfig

TOPICS, WORDS, LENGTH = 8, 32, 32
CHANCES = (0.5, 0.25, 0.15, 0.1)
CONTROL = 3
VOCABULARY = CONTROL + TOPICS + WORDS
HELD_OUT = 256
DIALECT = 0.3
TEACHER_STEPS, STUDENT_STEPS = 600, 300
PLAIN_EPOCHS = (3, 5, 10, 20)
METHODS: dict[str, dict[str, Any]] = {
    "forward": {"divergence": "forward"},
    "reverse": {"divergence": "reverse"},
    "jsd": {"divergence": "jsd"},
    "forward, half on-policy": {"divergence": "forward", "on_policy": 0.5},
    "reverse, half on-policy": {"divergence": "reverse", "on_policy": 0.5},
    "jsd, half on-policy": {"divergence": "jsd", "on_policy": 0.5},
    "jsd, on-policy": {"divergence": "jsd", "on_policy": 1.0},
}
TRAINING = {
    "lora": {"r": 16, "alpha": 32, "target_modules": "all-linear"},
    "batch_size": 8,
    "checkpoint_steps": 10_000,
}
PLAIN_RATE, SOFT_RATE, SOFT_EPOCHS = 0.003, 0.01, 20
MEASURES = ("held-out NLL", "same likeliest word", "allowed words", "distance of own texts")


class Language:
    """Which words follow a word, by topic: (topics, words, 4), drawn anew for each seed."""

    def __init__(self, seed: int, dialect: float = 0.0) -> None:
        import torch

        self.draw = torch.Generator().manual_seed(seed)
        self.next, other = (
            torch.rand(TOPICS, WORDS, WORDS, generator=self.draw).argsort(-1)[..., : len(CHANCES)] for _ in range(2)
        )
        changed = torch.rand(TOPICS, WORDS, 1, generator=self.draw) < dialect
        self.next = torch.where(changed, other, self.next)

    def texts(self, count: int) -> Any:
        """(count, 2 + LENGTH) token ids: a topic, a first word, and what follows."""
        import torch

        topics = torch.randint(TOPICS, (count,), generator=self.draw)
        words = [torch.randint(WORDS, (count,), generator=self.draw)]
        for _ in range(LENGTH):
            chosen = torch.multinomial(torch.tensor(CHANCES), count, replacement=True, generator=self.draw)
            words.append(self.next[topics, words[-1], chosen])
        return torch.stack([topics + CONTROL, *(word + CONTROL + TOPICS for word in words)], dim=1)

    def allows(self, texts: Any) -> float:
        """The share of a text's words, from the third token on, that may follow the word before."""
        topics, words = texts[:, :1] - CONTROL, (texts[:, 1:] - CONTROL - TOPICS).clamp(0, WORDS - 1)
        followers = self.next[topics, words[:, :-1]]
        return float((followers == (texts[:, 2:] - CONTROL - TOPICS)[..., None]).any(-1).float().mean())


def pretrain(folder: Path, language: Language, shape: dict[str, int], steps: int, seed: int) -> Path:
    """A model of this shape after so many steps of 64 fresh texts, with a tokenizer of words."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        ids = language.texts(64)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="w0", eos_token="w1", pad_token="w2")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def continued(model: Any, begins: Any, seed: int) -> Any:
    """Texts that a model writes after these beginnings, at temperature 1."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        return model.generate(
            begins,
            attention_mask=torch.ones_like(begins),
            do_sample=True,
            top_k=0,
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
            pad_token_id=2,
        )


def logs(model: Any, texts: Any) -> Any:
    """(texts, LENGTH, vocabulary): the model's log-probabilities where a word was to be found."""
    import torch

    with torch.no_grad():
        return torch.log_softmax(model(input_ids=texts).logits[:, 1:-1], dim=-1)


def measured(student: Any, teacher: Any, language: Language, texts: Any) -> dict[str, float]:
    """The four figures of a student on new texts of the teacher."""
    left, right = logs(teacher, texts), logs(student, texts)
    own = continued(student, texts[:, :2], seed=7)
    said = own[:, 2:, None]
    gap = logs(student, own).gather(2, said) - logs(teacher, own).gather(2, said)
    figures = (
        -float(right.gather(2, texts[:, 2:, None]).mean()),
        float((left.argmax(-1) == right.argmax(-1)).float().mean()),
        language.allows(own),
        float(gap.mean()),
    )
    return dict(zip(MEASURES, figures, strict=True))


def distilled(folder: Path, student: Path, texts: Any, settings: DistillConfig) -> Any:
    """The student after the stage's own training on these texts."""
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from potstill.config import StudentConfig
    from potstill.distill.data import Rows
    from potstill.distill.engine import cross_entropy
    from potstill.distill.on_policy import student_writes
    from potstill.distill.soft_targets import soft_objective
    from potstill.distill.train import Job, train

    config = StudentConfig(base=str(student), device="cpu")
    soft = settings.soft_targets
    rows = [{"input_ids": ids, "labels": [-100, -100, *ids[2:]]} for ids in texts.tolist()]
    job = Job(
        settings,
        Rows(rows, 0, 0, 0, 0),
        Rows([], 0, 0, 0, 0),
        folder / "checkpoints",
        folder / "adapter",
        "plan",
        cross_entropy if soft.teacher is None else soft_objective(config, soft),
        refresh=student_writes(config, settings) if soft.on_policy else None,
    )
    train(config, job, lambda _: None)
    return PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(student), str(folder / "adapter")).eval()


def plain_settings() -> Iterator[DistillConfig]:
    """How the texts alone are learned."""
    from potstill.config import DistillConfig

    for epochs in PLAIN_EPOCHS:
        yield DistillConfig.model_validate({**TRAINING, "epochs": epochs, "learning_rate": PLAIN_RATE})


def soft_settings(teacher: Path) -> Iterator[tuple[str, DistillConfig]]:
    """How the teacher's probabilities are learned, by method."""
    from potstill.config import DistillConfig

    for name, method in METHODS.items():
        soft = {"teacher": str(teacher), "temperature": 1.0, "weight": 1.0, "max_new_tokens": LENGTH, **method}
        more = {"epochs": SOFT_EPOCHS, "learning_rate": SOFT_RATE, "soft_targets": soft}
        yield name, DistillConfig.model_validate(TRAINING | more)


def one_seed(folder: Path, seed: int, count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The figures of the teacher itself, of the untrained student, and of each method."""
    from transformers import LlamaForCausalLM

    language = Language(seed)
    big = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    teacher = pretrain(folder / "teacher", language, big, TEACHER_STEPS, seed)
    student = pretrain(folder / "student", Language(seed, DIALECT), small, STUDENT_STEPS, 100 + seed)
    judge = LlamaForCausalLM.from_pretrained(teacher).eval()
    texts = continued(judge, language.texts(count + HELD_OUT)[:, :2], seed)
    known, new = texts[:count], texts[count:]

    def learned(name: str, settings: DistillConfig) -> dict[str, float]:
        return measured(distilled(folder / name, student, known, settings), judge, language, new)

    yield "the teacher itself", measured(judge, judge, language, new)
    yield "the student before", measured(LlamaForCausalLM.from_pretrained(student).eval(), judge, language, new)
    plain = [learned(f"plain-{number}", settings) for number, settings in enumerate(plain_settings())]
    yield "texts alone", min(plain, key=lambda figures: figures[MEASURES[0]])
    for name, settings in soft_settings(teacher):
        yield name, learned(name, settings)


def main() -> None:
    """Print a table: median and range over seeds."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as name:
            for method, figures in one_seed(Path(name), seed, given.texts):
                found.setdefault(method, []).append(figures)
                print(
                    seed, method, {key: round(value, 3) for key, value in figures.items()}, file=sys.stderr, flush=True
                )
    print("| | " + " | ".join(MEASURES) + " |\n|" + "---|" * (len(MEASURES) + 1))
    for method, runs in found.items():
        columns = [sorted(run[key] for run in runs) for key in MEASURES]
        cells = [f"{statistics.median(column):.3f} ({column[0]:.3f}-{column[-1]:.3f})" for column in columns]
        print(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
