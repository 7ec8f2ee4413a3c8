"""How often the student answers alone, and how often wrongly, on topics that it was taught and on topics that it was not.

python benchmarks/confidence.py --base .cache/tiny-base --out benchmarks/results/confidence.md

For each seed the demo's student is trained on another deal of the demo's data (configs/demo.yaml, emulator as teacher).
Taught: its held-out questions, each decided by a rule that was set on the other four fifths of them (cross-fitting by
prompt). Untaught: the phrasings of the eight topics of the same FAQ that are in no training file, decided by the rule set
on all held-out questions. Wrong: agreement with the teacher's answer below 1 - margin, as in the verdict. The rules are
those of `distill`, the decisions those of `infer`; random escalation is off.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from page import deliver, head

from potstill.config import CacheConfig, StudentConfig
from potstill.distill.asking import Judged, answers
from potstill.distill.data import read_data
from potstill.distill.router import Nearness as HeldOut
from potstill.distill.router import router_rule, surest
from potstill.files import read_text
from potstill.infer.cache import open_encoder
from potstill.infer.decide import Nearness, TakeStudent, after_students, before_students, policy
from potstill.records import Message, RouterRule, Sample
from potstill.student.familiar import nearness, read_known
from potstill.student.local import load_student
from potstill.teacher.emulator import EmulatorSettings, running
from potstill.workspace import Workspace, shipped

FOLDS = 5
CONFIG = "configs/demo.yaml"
FAQ = "hardware.en"


@dataclass(frozen=True)
class Tally:
    """Questions, how many the student answered alone, how many of those wrongly."""

    asked: int = 0
    alone: int = 0
    wrong: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.asked + other.asked, self.alone + other.alone, self.wrong + other.wrong)

    def cells(self) -> str:
        """Two columns of the table."""
        share = f"{self.wrong / self.alone:.1%}" if self.alone else "-"
        return f"{self.alone / self.asked:.1%} | {self.wrong} of {self.alone} ({share})"


@dataclass(frozen=True)
class Student:
    """What the student said to held-out and to untaught questions, and how near those are to the training questions."""

    held_out: list[Judged]
    untaught: list[Judged]
    near: HeldOut
    margin: float

    def rule(self, judged: Sequence[Judged]) -> RouterRule:
        """The rule that `distill` sets on these answers."""
        mine = {item.question: self.near.cosines[item.question] for item in judged}
        return router_rule(judged, self.margin, near=HeldOut(self.near.encoder, self.near.questions, mine))

    def decided(self, judged: Sequence[Judged], rule: RouterRule) -> Tally:
        """What `infer` does with these questions under a rule."""
        total = Tally()
        decide = policy("uncertain", rule)
        for item in surest(judged):
            cosine = self.near.cosines[item.question]
            near = Nearness(cosine, foreign=cosine is None)
            step = before_students(decide, near) if decide.familiar else None
            step = step or after_students(decide, [item.answer], near if decide.familiar else None)
            alone = isinstance(step, TakeStudent)
            total += Tally(1, int(alone), int(alone and not item.good(self.margin)))
        return total


def make(folder: Path, base: str, seed: int) -> Workspace:
    """The demo's dataset and student with other splits and another seed; what is finished already is kept."""
    common = ["-c", CONFIG, "-w", str(folder), "-q", "--set", f"student.base={base}"]
    with running(EmulatorSettings(faq=FAQ, latency_s=0)) as emulator:
        env = {**os.environ, "GEMINI_API_KEY": "any", "GOOGLE_GEMINI_BASE_URL": emulator.url}
        for command in (
            ["generate", "--max-cost", "1.00", "--set", f"generate.splits.seed={seed}"],
            ["distill", "--set", f"distill.seed={seed}"],
        ):
            subprocess.run(["potstill", command[0], *common, *command[1:]], env=env, check=True, capture_output=True)
    return Workspace(folder)


def ask(workspace: Workspace, base: str, margin: float) -> Student:
    """Let the student answer, and measure how near each question is."""
    files = workspace.student("demo")
    student = load_student(files, StudentConfig(base=base, device="cpu"))
    data = read_data(workspace, 0.9)
    held_out = answers(student, data.held_out, 48)
    untaught = answers(student, _untaught(data.held_out), 48)
    known = read_known(files.questions)
    assert known is not None, "distill has kept the training questions"
    encoder = open_encoder(CacheConfig(), workspace)
    cosines = nearness([item.question for item in (*held_out, *untaught)], known, encoder)
    return Student(held_out, untaught, HeldOut(known.encoder, len(known.vectors), cosines), margin)


def _untaught(like: Sequence[Sample]) -> list[Sample]:
    """The FAQ's questions about topics that the training file leaves out, in each role, with the FAQ's answers."""
    faq = yaml.safe_load(read_text(shipped("prompts") / "faq" / f"{FAQ}.yaml", "FAQ"))
    trained = set(read_text(shipped("prompts") / "tasks" / "faq-train.en.txt", "prompts").splitlines())
    roles = {sample.role: sample.messages[:-2] for sample in like}
    found = []
    for item in faq["items"]:
        for question in (text for text in item["questions"] if text not in trained):
            for role, system in roles.items():
                turns = (Message(role="user", content=question), _says(item["answers"][role]))
                found.append(
                    like[0].model_copy(update={"messages": (*system, *turns), "role": role, "prompt_id": question})
                )
    return found


def _says(text: str) -> Message:
    return Message(role="assistant", content=text)


def measured(student: Student) -> dict[str, tuple[Tally, Tally]]:
    """Taught (cross-fitted) and untaught, by each rule."""
    prompts = sorted({item.sample.prompt_id for item in student.held_out})
    random.Random(0).shuffle(prompts)
    fold = {prompt: place % FOLDS for place, prompt in enumerate(prompts)}
    whole = student.rule(student.held_out)
    taught = {"log-probability": Tally(), "and nearness": Tally()}
    for number in range(FOLDS):
        inside = [item for item in student.held_out if fold[item.sample.prompt_id] != number]
        outside = [item for item in student.held_out if fold[item.sample.prompt_id] == number]
        for name, rule in _both(student.rule(inside)).items():
            taught[name] += student.decided(outside, rule)
    return {name: (taught[name], student.decided(student.untaught, rule)) for name, rule in _both(whole).items()}


def _both(rule: RouterRule) -> dict[str, RouterRule]:
    assert rule.alone is not None
    return {"log-probability": rule.alone, "and nearness": rule}


def main() -> None:
    """Train, ask, decide, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=".cache/tiny-base", help="made by scripts/build_tiny_base.py")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--margin", type=float, default=0.2)
    parser.add_argument("--keep", type=Path, help="a folder for the workspaces, used again where they are finished")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    page = _head(options.margin)
    sums: dict[str, tuple[Tally, Tally]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in options.seeds:
            workspace = make((options.keep or Path(scratch)) / f"s{seed}", options.base, seed)
            for name, (taught, untaught) in measured(ask(workspace, options.base, options.margin)).items():
                page.append(f"| {seed} | {name} | {taught.cells()} | {untaught.cells()} |")
                before = sums.get(name, (Tally(), Tally()))
                sums[name] = (before[0] + taught, before[1] + untaught)
    page += [f"| all | **{name}** | {one.cells()} | {other.cells()} |" for name, (one, other) in sums.items()]
    deliver(page, options.out)


def _head(margin: float) -> list[str]:
    """Where, when and what."""
    return [
        *head(
            "The student's confidence, on topics that it was taught and on topics that it was not",
            f"The demo's student and data, margin {margin:g}; MiniLM. Shares of questions, so load does not matter.",
        ),
        "",
        "| seed | rule | taught: answered alone | wrong of those | untaught: answered alone | wrong of those |",
        "|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
