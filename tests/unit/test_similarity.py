"""How near in meaning the answers are, measured only where the encoder can read them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.test_verdict import NOW, case, sample

from potstill.distill.asking import Judged
from potstill.distill.judge import Evidence, score, verdict
from potstill.distill.report import meaning, page
from potstill.distill.similarity import measured
from potstill.infer.loading import load_encoder
from potstill.student.answers import StudentAnswer
from potstill.student.familiar import Reader


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """The cache's default encoder."""
    return load_encoder("all-MiniLM-L6-v2", tmp_path_factory.mktemp("encoders"))


def said(text: str, reference: str, role: str = "expert") -> Judged:
    """A student's answer beside the teacher's."""
    answer = StudentAnswer(role=role, text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    return Judged(sample("why", reference, role=role, prompt=reference), answer, 0.5, exact=False)


def test_meaning_is_told_apart_from_wording(minilm: Reader) -> None:
    """The same said in other words is near, something else is not, and no answer at all is like nothing."""
    stored = "Dust in the fan keeps the heat in."
    other, wrong, empty = measured(
        [
            said("The heat stays inside because the fan is dusty.", stored),
            said("A token is a piece of a word.", stored),
            said(" ", stored),
        ],
        minilm,
    )
    assert other.similarity is not None
    assert wrong.similarity is not None
    assert other.similarity > 0.8
    assert wrong.similarity < 0.3
    assert empty.similarity == 0.0


def test_what_the_encoder_cannot_read_is_not_measured(minilm: Reader) -> None:
    """MiniLM reads no Chinese: for such a role there is no figure, not one near 1, and the report says so."""
    rows = measured(
        [said("Dust.", "Dust in the fan.", "expert"), said("因為風扇裡有灰塵", "散熱片積了灰塵", "chinese")], minilm
    )
    assert rows[1].similarity is None
    found = verdict(case(), Evidence(rows, rows, encoder=minilm.id), NOW)
    assert found.by_role["chinese"].similarity is None
    assert found.by_role["expert"].similarity is not None
    assert found.student_score.similarity is None  # half of all answers is not the whole
    shown = page(found, Evidence(rows, rows), Path("none"))
    assert "not measured" in shown
    assert "No threshold could be tried" in shown, "two prompts are too few for any, and an empty table says nothing"
    assert minilm.id in meaning(found)


def test_a_mean_is_not_that_of_a_chosen_few() -> None:
    """One answer of ten may be unreadable; two may not."""
    rows = [said("a", f"b{number}") for number in range(10)]
    known = [Judged(row.sample, row.answer, row.score, row.exact, similarity=0.5) for row in rows]
    assert score([*known[:9], rows[9]]).similarity == 0.5
    assert score([*known[:8], *rows[8:]]).similarity is None


def test_no_encoder_is_said() -> None:
    """Where the encoder cannot be had, the verdict says why, and stands all the same."""
    rows = [said("a", "b")]
    found = verdict(case(), Evidence(rows, rows, encoder="not measured: no such encoder"), NOW)
    assert meaning(found) == "Meaning: not measured: no such encoder."
