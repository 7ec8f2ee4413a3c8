"""A student trained in another's place: the earlier one is kept whole, and both answer the same held-out questions."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import tiny_model, tiny_tokenizer
from tests.unit.test_dataset_reading import line, write
from tests.unit.test_verdict import decide, many

from potstill.config import Config, with_values
from potstill.distill.progress import Progress
from potstill.distill.report import summary
from potstill.distill.run import Distilled, distill
from potstill.files import FileLock
from potstill.workspace import Workspace


def nothing(_: object) -> None:
    """Say nothing."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Twelve samples, two held out, a tiny base, and an evaluation of a few tokens."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    samples = "".join(line(f"a number, {number}", f"what is {number}?") for number in range(12))
    held_out = "".join(line(f"a name, {name}", f"who is {name}?") for name in ("Ada", "Grace"))
    write(Workspace(tmp_path / "w"), train=samples, test=held_out)
    student, training = {"base": str(tmp_path / "base"), "device": "cpu"}, {"epochs": 5.0, "max_new_tokens": 4}
    return with_values(Config(workspace=str(tmp_path / "w")), student=student, distill=training)


def test_the_student_that_gives_way_is_kept_and_compared_with(config: Config) -> None:
    """It lies in `earlier/` with its verdict, also where the new one's training was cut off; the first has nothing before it."""
    workspace = Workspace(Path(config.workspace))
    files = workspace.student(config.distill.name)

    def run(seed: int, cut: bool = False) -> Distilled:
        def follow(_: Progress) -> None:
            if cut:
                raise KeyboardInterrupt

        found = distill(with_values(config, distill={"seed": seed}), workspace, nothing, follow)
        assert found is not None
        return found

    first = run(0)
    weights = (files.adapter / "adapter_model.safetensors").read_bytes()
    assert first.verdict.gain is None
    (files.export / "student").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        run(1, cut=True)
    assert files.export.is_dir()
    assert files.verdict.is_file(), "what stands here is whole until another takes its place"
    second = run(1)
    assert second.verdict.gain is not None
    assert (second.verdict.gain.n, second.verdict.gain.earlier) == (2, first.verdict.student_score.score)
    assert second.verdict.gain.gain == pytest.approx(
        second.verdict.student_score.score - first.verdict.student_score.score
    )
    kept = files.earlier
    assert (kept.adapter / "adapter_model.safetensors").read_bytes() == weights
    assert kept.verdict.read_text() == first.verdict.model_dump_json(indent=2) + "\n"
    assert not kept.checkpoints.exists()
    assert (kept.export / "student").is_dir(), "what was exported of the one is not served for the other"
    assert not files.export.exists()
    assert run(1) == Distilled(second.manifest, second.verdict, fresh=False)
    assert kept.manifest.read_text() == first.manifest.model_dump_json(indent=2) + "\n"


def test_a_second_run_waits_for_the_first(config: Config) -> None:
    """Where another run is at work on the student, it is said, and nothing is touched until that has ended."""
    workspace = Workspace(Path(config.workspace))
    files = workspace.student(config.distill.name)
    other = FileLock(files.distilling)
    assert other.taken()
    said: list[str] = []

    def end_the_other(text: str) -> None:
        said.append(text)
        if "waiting" in text:
            assert not files.checkpoints.exists()
            other.close()

    assert distill(config, workspace, end_the_other, nothing) is not None
    assert sum("waiting until it has ended" in text for text in said) == 1


def test_only_what_is_finished_is_tidied_up(config: Config) -> None:
    """Another plan that was cut off keeps its checkpoints while the finished student is looked at, or judged, once more.

    What a kill left behind the verdict, the same command clears away.
    """
    workspace = Workspace(Path(config.workspace))
    files = workspace.student(config.distill.name)

    def cut(_: Progress) -> None:
        raise KeyboardInterrupt

    plan = distill(config, workspace, nothing, nothing)
    assert plan is not None
    assert not files.checkpoints.exists()
    with pytest.raises(KeyboardInterrupt):
        distill(with_values(config, distill={"seed": 1, "checkpoint_steps": 1}), workspace, nothing, cut)
    waiting = sorted(files.checkpoints.glob("checkpoint-*"))
    assert waiting
    for margin in (config.distill.margin, 0.5):
        distill(with_values(config, distill={"margin": margin}), workspace, nothing, nothing)
        assert sorted(files.checkpoints.glob("checkpoint-*")) == waiting
        assert files.effort.exists()
    (files.checkpoints / "plan.txt").write_text(plan.manifest.plan_id)
    distill(with_values(config, distill={"margin": 0.5}), workspace, nothing, nothing)
    assert not files.checkpoints.exists()
    assert not files.effort.exists()


@pytest.mark.parametrize(("old", "new", "said"), [(0.4, 0.6, "+0.20"), (0.6, 0.4, "and is the better one")])
def test_the_verdict_says_which_is_better(old: float, new: float, said: str) -> None:
    """The difference is question by question, so its interval is that of equal steps: none wide."""
    verdict = decide(many(new, -1.0, 20), earlier=many(old, -1.0, 20))
    assert verdict.gain is not None
    assert verdict.gain.low == pytest.approx(verdict.gain.high)
    (text,) = (each for each in summary(verdict) if "before it" in each)
    assert said in text
