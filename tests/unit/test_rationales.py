"""Rationales: asked for beside the answers, and learned as a second task that nobody asks for when serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.test_dataset_reading import line
from tests.unit.test_distill_training import base, ignore, job, rows  # noqa: F401  (base is a fixture)
from tests.unit.test_refine import SAMPLE, text_of
from tests.unit.test_template import make_tokenizer

from potstill.config import Config, StudentConfig, with_values
from potstill.distill.data import Rows, encode, supervised
from potstill.distill.preview import samples, warnings
from potstill.distill.rationales import check_rationales, training_rows
from potstill.distill.train import train
from potstill.errors import InputError
from potstill.generate.rationales import Rationales
from potstill.records import Sample
from potstill.teacher.paid import free_answer

WHY = "Silicon ages faster when hot, and makers allow ninety, so ten less is safe."


def weighted(weight: float | None, language: str = "en") -> Config:
    """A config in which rationales have this weight."""
    return with_values(Config(language=language), distill={"rationale": {"weight": weight}})


def sample(question: str, why: str | None) -> Sample:
    """A training sample with a rationale, or without."""
    return Sample.model_validate_json(line("forty two", question)).model_copy(update={"rationale": why})


@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_a_rationale_is_asked_for_as_the_role_and_kept_whole_only(language: str) -> None:
    """The request shows question and answer; a cut, empty, looping or refusing reply leaves the sample as it was."""
    rationales = Rationales(Config(language=language))
    request = rationales.request(SAMPLE)
    assert all(part in text_of(request) for part in ("How hot may a card be?", "Eighty degrees."))
    assert request.body["systemInstruction"]["parts"][0]["text"] == "You are an engineer."
    assert rationales.explained(SAMPLE, lambda asked: free_answer(asked, f" {WHY} ")).rationale == WHY
    assert rationales.explained(SAMPLE, lambda _: None) == SAMPLE
    for text, reason in (
        (WHY, "MAX_TOKENS"),
        ("", "STOP"),
        ("again " * 50, "STOP"),
        ("I cannot help with that.", "STOP"),
    ):
        reply = (text, reason)
        assert (
            rationales.explained(SAMPLE, lambda asked, r=reply: free_answer(asked, r[0], finish_reason=r[1])) == SAMPLE
        )


def test_a_line_without_a_rationale_is_as_it_was() -> None:
    """The field is left out of the dataset where it was not asked for, and read back where it was."""
    assert "rationale" not in SAMPLE.to_line()
    explained = SAMPLE.model_copy(update={"rationale": WHY})
    assert Sample.model_validate_json(explained.to_line()) == explained


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_two_tasks_weighted_by_their_means(weight: float) -> None:
    """The answers' rows are those of plain training; all rationales together weigh `weight` times all answers."""
    tokenizer = make_tokenizer("qwen2_5")
    dataset = [sample("one", WHY), sample("two", None), sample("three", WHY * 2)]
    found, plain = training_rows(tokenizer, dataset, weighted(weight)), encode(tokenizer, dataset, 1024)
    assert found.rows == plain.rows
    assert sorted(found.rationales) == [0, 2]
    learned = sum(map(supervised, found.rationales.values()))
    assert found.rationale_weight * learned == pytest.approx(weight * plain.supervised)
    text = tokenizer.decode(found.rationales[0]["input_ids"])
    assert "without giving it:\none" in text
    assert WHY in text
    assert "forty two" not in text


def test_off_by_default_and_refused_without_rationales() -> None:
    """Without a weight rationales are not looked at; with one, a dataset that has none ends with what to do.

    A role without any beside others that have them learns its answers alone.
    """
    tokenizer = make_tokenizer("qwen2_5")
    assert not training_rows(tokenizer, [sample("one", WHY)], Config()).rationales
    bare = training_rows(tokenizer, [sample("one", None)], weighted(0.5))
    assert bare == encode(tokenizer, [sample("one", None)], 1024)
    check_rationales(bare, Config())
    with pytest.raises(InputError, match="no training sample has a rationale") as caught:
        check_rationales(bare, weighted(0.5))
    assert "generate.rationales.enabled=true" in (caught.value.hint or "")


def test_a_dry_run_shows_both_tasks(tmp_path: Path) -> None:
    """One sample of each task is shown with its learned part, and samples without a rationale are counted."""
    from tests.unit.test_dataset_reading import write

    from potstill.distill.data import read_data
    from potstill.workspace import Workspace

    workspace, tokenizer = Workspace(tmp_path), make_tokenizer("qwen2_5")
    lines = sample("one", WHY).to_line() + sample("two", None).to_line()
    write(workspace, train=lines, test=line("held", "a fair question"))
    data = read_data(workspace, 0.85)
    found = training_rows(tokenizer, data.train, weighted(0.5))
    learned = [[part.text for part in stretches if part.learned] for stretches in samples(tokenizer, found)]
    assert ["forty two<|im_end|>"] in learned
    assert [f"{WHY}<|im_end|>"] in learned
    assert any("1 training samples have no rationale" in note for note in warnings(data, found))


def test_both_tasks_are_learned_in_the_same_steps(tmp_path: Path, base: Path) -> None:  # noqa: F811
    """A rationale's row beside each sample is learned without one step more; alone, the samples do not teach it."""
    ids = [3 + 7 * place % 60 for place in range(20)]
    why = {"input_ids": ids, "labels": [-100, *ids[1:]]}
    watched = Rows([why], 0, 0, 0, 0)
    found = []
    for name, rationales in (("plain", {}), ("both", dict.fromkeys(range(22), why))):
        train_rows = Rows(rows(22).rows, 0, 0, 0, 0, rationales, 1.0)
        work = replace(job(tmp_path / name, watched, eval_steps=12, epochs=2), train=train_rows)
        log = train(StudentConfig(base=str(base), device="cpu"), work, ignore)
        found.append(next((entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry))
    (plain_step, plain_loss), (both_step, both_loss) = found
    assert plain_step == both_step == 12
    assert both_loss < plain_loss - 0.2
