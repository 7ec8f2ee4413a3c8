"""How far two answers agree, and which held-out questions are fair."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.samples import line_of

from potstill.distill.heldout import _Shingles, fair
from potstill.distill.metrics import agreement, chrf


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_agreement_is_a_share(left: str, right: str) -> None:
    """Agreement lies in 0..1, and a text agrees fully with itself."""
    assert 0 <= agreement(left, right).score <= 1
    assert agreement(left, left).exact


@given(st.text(max_size=60))
def test_spacing_does_not_count(text: str) -> None:
    """Two answers that differ only in spacing are the same."""
    assert agreement(f"  {text}\n", text).exact


def test_chinese_needs_no_word_boundaries() -> None:
    """A Chinese answer that shares half of its characters scores between a stranger's and a full agreement."""
    assert chrf("電源風扇", "記憶體大") < chrf("記憶電源", "記憶體大") < 1


def test_json_is_compared_by_values() -> None:
    """Order of names and spacing do not count; a wrong value counts for its share; text in place of JSON is nothing."""
    wanted = '{"label": "hot", "score": 3, "tags": ["a", "b"]}'
    same = agreement('```json\n{"score": 3, "tags": ["b", "a"], "label": "hot"}\n```', wanted)
    assert (same.score, same.well_formed) == (1.0, True)
    off = agreement('{"label": "cold", "score": 3, "tags": ["a", "b"]}', wanted)
    assert (off.score, off.exact, off.well_formed) == (0.75, False, True)
    assert agreement('{"label": 1}', wanted).well_formed is False
    assert agreement("hot, 3", wanted) == (0.0, False, False)


def test_numbers_are_values_and_truth_is_none() -> None:
    """3.0 is 3, exactly; true is not 1, neither exactly nor in score."""
    assert agreement('{"n": 3.0}', '{"n": 3}')[:2] == (1.0, True)
    assert agreement('{"n": true}', '{"n": 1}')[:2] == (0.0, False)
    assert agreement('{"n": [1e999, NaN]}', '{"n": [1e999, NaN]}')[:2] == (1.0, True)


def test_one_letter_has_one_spelling() -> None:
    """A letter and its accent as one character or as two are the same text, in prose and in JSON."""
    assert agreement("cafe\u0301", "caf\u00e9") == (1.0, True, None)
    assert agreement('{"cafe\u0301": "e\u0301"}', '{"caf\u00e9": "\u00e9"}') == (1.0, True, True)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists))
def test_any_json_array_agrees_with_itself(value: object) -> None:
    """Whatever JSON the teacher answers, the same JSON agrees fully."""
    text = json.dumps([value])
    assert agreement(text, text)[:2] == (1.0, True)


def test_one_changed_word_is_a_near_duplicate_of_a_long_question() -> None:
    """A long question with one word changed resembles the original by more than 0.85; another question does not."""
    known = (
        "Which of the two graphics cards in my workstation should I use for training a small language model at night?"
    )
    shingles = _Shingles({known, "How hot may a card become?"})
    assert shingles.nearest(known.upper().rstrip("?"))[1] == 1
    assert shingles.nearest(known.replace("small", "tiny"))[1] > 0.85
    assert shingles.nearest("How do I train a language model?")[1] < 0.5
    assert shingles.nearest("%") == ("", 0.0)


def test_the_same_question_leaks_in_any_form() -> None:
    """In full-width letters, another case and other marks it is the same question, a leak at a threshold of 1 too."""
    held_out = [line_of(("user", question), ("assistant", "a")) for question in ("ＧＰＵ 太熱！", "gpu 太冷")]
    found = fair([line_of(("user", "gpu 太熱"), ("assistant", "b"))], held_out, 1.0)
    assert [leak.sample for leak in found.leaks] == held_out[:1]
    assert found.samples == held_out[1:]
