"""What a second round near the failures brings, beside as many new prompts from anywhere, on questions never seen.

    python benchmarks/second_round.py

The emulator knows eight topics of the hardware FAQ and answers with the topic's name. The first round has many questions of
four of them and few of the others. Then its prompts grow: like those that the student failed at (`--from-failures`), or by
the same number like any of the pool (`grow`, self-instruct). A fourth row keeps the first student where the verdict on the
second one says that it was better on the held-out questions. Base: a small Llama shape with random weights, adapters of full
rank, equally many steps in all three students. Scored on questions that neither the student ever saw nor the teacher gives.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from word_base import save_base

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

SEEDS = tuple(range(5))
TOPICS, COMMON, RARE, FRESH = 8, 18, 4, 6
"""Questions of a well covered topic and of a neglected one in the first round, and of each that nobody sees."""
PUNCTUATION = "?.,'\u2019-"
TARGET, STEPS, BATCH = 40, 200, 8
ARMS: dict[str, dict[str, Any]] = {
    "first round": {},
    "near the failures": {"failures": {"target": TARGET}},
    "as many from anywhere": {"grow": {"target": TARGET, "method": "self-instruct"}},
}

KEPT = "near the failures, unless the verdict says worse"


def faq(folder: Path, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]], set[str]]:
    """Write the teacher's FAQ and the first prompts; gives the fresh questions and all, by topic, and the rare topics."""
    from potstill.workspace import shipped

    draw = random.Random(seed)
    items = yaml.safe_load((shipped("prompts") / "faq" / "hardware.en.yaml").read_text("utf-8"))["items"]
    questions = {item["id"].replace("-", ""): draw.sample(item["questions"], len(item["questions"])) for item in items}
    questions = {topic: questions[topic] for topic in sorted(draw.sample(list(questions), TOPICS))}
    topics = list(questions)
    rare = set(draw.sample(topics, len(topics) // 2))
    known = {topic: texts[FRESH:] for topic, texts in questions.items()}
    entries = [{"id": topic, "questions": texts, "answers": {"default": topic}} for topic, texts in known.items()]
    (folder / "faq.yaml").write_text(yaml.safe_dump({"language": "en", "personas": {}, "items": entries}), "utf-8")
    first = [text for topic in topics for text in known[topic][: RARE if topic in rare else COMMON]]
    draw.shuffle(first)
    (folder / "first.txt").write_text("\n".join(first) + "\n", "utf-8")
    (folder / "role.yaml").write_text("name: clerk\ndescription: {en: names topics}\nsystem: {en: topic}\n", "utf-8")
    return {topic: texts[:FRESH] for topic, texts in questions.items()}, questions, rare


def save_reader(folder: Path, questions: dict[str, list[str]], seed: int) -> None:
    """A base that reads the questions' words, whatever their case and punctuation."""
    from tokenizers import Regex, normalizers

    words = {word for texts in questions.values() for text in texts for word in _words(text)}
    plain = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(f"[{PUNCTUATION}]"), " ")])
    turns = ("<unk>", "system", "user", "assistant", "topic")
    save_base(folder, [*turns, *questions, *sorted(words)], seed, plain)


def _words(text: str) -> list[str]:
    return "".join(" " if letter in PUNCTUATION else letter for letter in text.lower()).split()


def settings(folder: Path, url: str, seed: int, arm: dict[str, Any]) -> Any:
    """The config of one arm."""
    from potstill.config import Config

    return Config.model_validate(
        {
            "workspace": str(folder / "w"),
            "teacher": {"base_url": url, "rpm": None},
            "generate": {
                "prompts": [str(folder / "first.txt")],
                "roles": [str(folder / "role.yaml")],
                "splits": {"validation": 0, "test": 0.3, "seed": seed},
                **arm,
            },
            "student": {"base": str(folder / "base"), "device": "cpu"},
            "distill": {
                "lora": {"r": 64, "alpha": 64, "target_modules": "all-linear"},
                "batch_size": BATCH,
                "learning_rate": 0.003,
                "checkpoint_steps": 100_000,
                "max_new_tokens": 4,
                "seed": seed,
            },
        }
    )


def one_round(config: Any) -> tuple[int, int, Decimal, float]:
    """Generate and distill; gives prompts near failures, training samples, what was paid, and the gain by the verdict."""
    from pydantic import SecretStr

    from potstill.config import Secrets, with_values
    from potstill.distill.run import distill
    from potstill.generate.run import Terms, generate
    from potstill.infer.loading import load_encoder
    from potstill.ledger import LedgerView
    from potstill.workspace import Workspace

    workspace = Workspace(Path(config.workspace))

    def encode(texts: Any) -> Any:
        return load_encoder(config.cache.encoder, workspace.encoders).encode(texts)

    async def run() -> Any:
        terms = Terms(lambda _: None, asyncio.Event(), encode=encode)
        return await generate(config, Secrets(teacher_key=SecretStr("a-key-for-the-emulator")), workspace, terms)

    outcome = asyncio.run(run())
    assert outcome.stopped is None, outcome.stopped
    count = outcome.manifest.samples["train"]
    config = with_values(config, distill={"epochs": STEPS * BATCH / count})
    done = distill(config, workspace, lambda _: None, lambda _: None)
    assert done is not None
    gain = 0.0 if done.verdict.gain is None else done.verdict.gain.gain
    with LedgerView(workspace.ledger) as view:
        return outcome.second_round.growth.grown if outcome.second_round else 0, count, view.committed(), gain


def score(config: Any, fresh: dict[str, list[str]]) -> dict[str, float]:
    """Share of the fresh questions of each topic that the student names."""
    from potstill.records import Message
    from potstill.student.answers import StudentQuery
    from potstill.student.local import load_student
    from potstill.workspace import Workspace

    files = Workspace(Path(config.workspace)).student(config.distill.name)
    student = load_student(files, config.student)
    found = {}
    for topic, texts in fresh.items():
        chats = [(Message(role="system", content="topic"), Message(role="user", content=text)) for text in texts]
        asked = [StudentQuery(role="clerk", messages=chat, max_new_tokens=4) for chat in chats]
        found[topic] = statistics.mean(answer.text.strip() == topic for answer in student.answer(asked))
    return found


def compare(seed: int) -> dict[str, tuple[float, float, int, Decimal, float]]:
    """Right answers on neglected and on other topics, training samples and dollars, by arm."""
    from potstill.teacher.emulator import EmulatorSettings, running

    found, grown = {}, 0
    with tempfile.TemporaryDirectory() as name:
        first = Path(name) / "first"
        first.mkdir()
        fresh, questions, rare = faq(first, seed)
        save_reader(first / "base", questions, seed)
        with running(EmulatorSettings(faq=str(first / "faq.yaml"), latency_s=0.0)) as emulator:
            for arm, values in ARMS.items():
                folder = first if not values else Path(name) / arm.replace(" ", "-")
                if values:
                    shutil.copytree(first, folder)
                failures = {"file": str(first / "w" / "students" / "student"), **values.get("failures", {})}
                changed = {**values, "failures": failures} if "failures" in values else values
                if "grow" in values:
                    changed = {"grow": {**values["grow"], "target": grown}}
                config = settings(folder, emulator.url, seed, changed)
                near, count, usd, gain = one_round(config)
                grown = near or grown
                right = score(config, fresh)
                shares = [
                    statistics.mean(share for topic, share in right.items() if (topic in rare) is is_rare)
                    for is_rare in (True, False)
                ]
                found[arm] = (shares[0], shares[1], count, usd, gain)
                if near:
                    found[KEPT] = found["first round" if gain < 0 else arm]
    return found


def main() -> None:
    """Print a table: means over seeds, and each seed's overall share of right answers."""
    started = time.process_time()
    runs = [compare(seed) for seed in SEEDS]
    print(
        "| | neglected topics | other topics | all, by seed | all, mean | by the verdict | training samples | dollars |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for arm in runs[0]:
        rare, common, counts, dollars, gains = zip(*(run[arm] for run in runs), strict=True)
        every = [(left + right) / 2 for left, right in zip(rare, common, strict=True)]
        means = [f"{statistics.mean(shares):.1%}" for shares in (rare, common)]
        seeds = ", ".join(f"{share:.1%}" for share in every)
        gained = ", ".join(f"{gain:+.2f}" for gain in gains)
        samples, usd = statistics.mean(counts), statistics.mean(map(float, dollars))
        print(
            f"| {arm} | {' | '.join(means)} | {seeds} | {statistics.mean(every):.1%} | {gained} | {samples:.0f} | {usd:.4f} |"
        )
    print(f"\n{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
