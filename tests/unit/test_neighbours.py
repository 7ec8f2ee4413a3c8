"""Near-duplicates: never claimed wrongly, found in English and Chinese, and their groups stable."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.generate.groups import Copies, Groups
from potstill.generate.neighbours import Neighbour, Neighbours, shingles, similarity

WORDS = st.sampled_from(["memory", "card", "heat", "model", "rank", "記憶體", "顯示卡", "量化", "資料", "batch"])
SENTENCES = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("How much memory does a small model need?", "how much memory does a small model need"),
        ("How much memory does a small language model need?", "How much memory does a small language model need now?"),
        ("小型模型需要多少顯示卡記憶體才夠用呢？", "小型模型需要多少顯示卡記憶體才夠用？"),
        ("ＧＰＵ 過熱怎麼辦？", "GPU過熱怎麼辦"),
    ],
)
def test_alike_texts_are_neighbours(left: str, right: str) -> None:
    """Case, width, punctuation and a word more do not hide that two questions are one, in either script."""
    with closing(Neighbours(0.8)) as index:
        index.add(left)
        assert [neighbour.number for neighbour in index.near(right)] == [0]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Does a model of 7 billion weights fit into 8 GB?", "Does a model of 7 billion weights fit into 16 GB?"),
        ("How do I cool a card?", "Should I rent a card?"),
        ("如何降低顯示卡溫度？", "顯示卡該買還是租？"),
    ],
)
def test_other_questions_are_not(left: str, right: str) -> None:
    """Another number or another wish makes another question."""
    assert similarity(left, right) < 0.8


@given(st.lists(SENTENCES, max_size=12), st.floats(0.3, 1.0))
@settings(max_examples=60, deadline=None)
def test_a_neighbour_is_as_alike_as_it_says(texts: list[str], threshold: float) -> None:
    """Whatever the sketch proposes, each neighbour given has the exact similarity, at or above the threshold."""
    with closing(Neighbours(threshold)) as index:
        for position, text in enumerate(texts):
            for neighbour in index.add(text):
                assert neighbour.number < position
                assert neighbour.similarity == similarity(text, texts[neighbour.number]) >= threshold


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_symmetric_and_bounded(left: str, right: str) -> None:
    """Any two texts: the same either way, between 0 and 1, and 1 of a text with itself."""
    assert similarity(left, right) == similarity(right, left)
    assert 0 <= similarity(left, right) <= 1
    assert similarity(left, left) == 1


def test_a_twin_is_found_among_many_that_are_half_alike() -> None:
    """Hundreds of texts by one template do not hide a text's twin."""
    with closing(Neighbours(0.9)) as index:
        for number in range(600):
            index.add(
                f"please write a long and friendly letter to {chr(97 + number % 26) * 7}{chr(97 + number // 26) * 7}"
            )
        index.add("please write a long and friendly letter to our customers")
        (twin,) = index.add("Please write a long and friendly letter to our customers!")
        assert twin == Neighbour(600, 1.0)


def test_a_short_text_still_has_a_shingle() -> None:
    """One character, Latin or Chinese, can be compared."""
    assert shingles("a") == frozenset({" a "})
    assert shingles("熱") == frozenset({"熱"})


@given(st.lists(SENTENCES, unique=True, min_size=1, max_size=15), st.integers(1, 15))
@settings(max_examples=60, deadline=None)
def test_added_prompts_move_no_group_that_they_do_not_join(texts: list[str], cut: int) -> None:
    """Appending prompts leaves each earlier prompt its leader, or gives it an earlier one when two groups meet."""
    with closing(Groups(0.6, 20)) as few, closing(Groups(0.6, 20)) as many:
        for text in texts[:cut]:
            few.add(text, text)
        for text in texts:
            many.add(text, text)
        for text in texts[:cut]:
            before, after = few.leader(text), many.leader(text)
            assert texts.index(after) <= texts.index(before) <= texts.index(text)


def test_neighbours_of_neighbours_share_a_group_up_to_its_size() -> None:
    """A chain of small changes is one group, led by the first; a template's prompts fill groups of the largest size."""
    chain = ["a red card for a big model", "a red card for a big model now", "a red card for a big model now then"]
    with closing(Groups(0.8, 20)) as groups:
        for text in (*chain, "nothing like it"):
            groups.add(text, text)
        assert {groups.leader(text) for text in chain} == {chain[0]}
        assert groups.sizes() == {3: 1, 1: 1}
        assert groups.leader("never seen") == "never seen"
    template = [f"please write a long and friendly letter to our dear customer {chr(97 + n)}" for n in range(10)]
    with closing(Groups(0.8, 4)) as groups:
        for text in template:
            groups.add(text, text)
        assert max(groups.sizes()) == 4


def test_a_copy_names_its_original() -> None:
    """The second of two alike prompts is a copy of the first; a third is measured against the first too."""
    with closing(Copies(0.8)) as copies:
        assert not copies.add("1", "How do I cool a hot graphics card?")
        assert copies.add("2", "How do I cool a hot graphics card")
        assert not copies.add("3", "Should I rent one?")
        assert copies.original("1") is None
        assert copies.original("2") == "How do I cool a hot graphics card?"
