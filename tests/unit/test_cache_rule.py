"""When a near question is a hit: the rule that config, calibration and audits leave, the breaker, and what is kept out."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import CacheConfig
from potstill.errors import QuotaError, TeacherError
from potstill.infer.agreement import agreement, drawn
from potstill.infer.breaker import CANCELLED, OUTAGES, REST_S, Breaker
from potstill.infer.calibration import Calibration
from potstill.infer.private import secret_in
from potstill.infer.rule import SAFE_COSINE, Candidate, Hit, Miss, Off, Rule, judge_neighbours, semantic_rule
from potstill.infer.store import Judged

RULE = Rule(0.85, "says")


def calibration(upper: float | None = 0.04, encoder: str = "e", entries: int = 1000) -> Calibration:
    """A calibration on the cosine."""
    return Calibration(
        created_at=datetime.now(UTC),
        encoder=encoder,
        source="pairs.tsv",
        max_wrong_rate=0.05,
        confidence=0.95,
        signal=None if upper is None else "cosine",
        threshold=None if upper is None else 0.9,
        upper=upper,
        reason="nothing holds" if upper is None else "holds",
        pairs={"fit": 1, "calibrate": 1, "heldout": 1},
        same_share=0.5,
        entries=entries,
        curve=(),
        held_out=(),
        verifier=None,
    )


def judged(wrong: int, right: int, source: str = "audit") -> list[Judged]:
    """Verdicts."""
    return [Judged(source, "n", "q", "c", fits) for fits in [False] * wrong + [True] * right]


def test_nearest_that_fits_is_served() -> None:
    """A vetoed neighbour makes room for the next one above the threshold."""
    near = [Candidate("Is 16 GB enough?", 0.97), Candidate("Would 8 GB be enough?", 0.93)]
    assert judge_neighbours("Is 8 GB enough?", near, RULE) == Hit(1, 0.93, "cosine 0.930 >= 0.85 (says)")


def test_miss_names_the_veto_or_the_distance() -> None:
    """A miss says what was near and why it was not served, and which candidate was nearest."""
    vetoed = judge_neighbours("Is 8 GB enough?", [Candidate("Is 16 GB enough?", 0.97)], RULE)
    assert isinstance(vetoed, Miss)
    assert vetoed.place is None
    assert "0.970, but numbers differ" in vetoed.reason
    far = judge_neighbours("a", [Candidate("b", 0.5)], RULE)
    assert far == Miss("nearest cached question at cosine 0.500 < 0.85 (says)", 0, 0.5)
    assert judge_neighbours("a", [], RULE) == Miss("no cached question near it")


def test_entry_that_was_wrong_must_score_higher() -> None:
    """After a wrong hit at a score an entry is not served at that score again, but at a higher one."""
    assert isinstance(judge_neighbours("a", [Candidate("b", 0.9, floor=0.9)], RULE), Miss)
    assert isinstance(judge_neighbours("a", [Candidate("b", 0.91, floor=0.9)], RULE), Hit)


@given(st.lists(st.tuples(st.text(max_size=10), st.floats(-1, 1), st.floats(0, 1)), max_size=6), st.floats(0.01, 1))
def test_no_hit_below_threshold_or_floor(neighbours: list[tuple[str, float, float]], threshold: float) -> None:
    """Whatever the neighbours, a hit is at or above the threshold and above its entry's floor."""
    ordered = [Candidate(*found) for found in sorted(neighbours, key=lambda found: -found[1])]
    found = judge_neighbours("What is LoRA?", ordered, Rule(threshold, ""))
    if isinstance(found, Hit):
        assert ordered[found.place].cosine >= threshold
        assert ordered[found.place].cosine > ordered[found.place].floor


def test_uncalibrated_cache_is_cautious_and_says_so() -> None:
    """Without a calibration, or with another encoder's, the threshold is the safe one, and the hit says it has no bound."""
    found = semantic_rule(CacheConfig(), None, "e", [], 0)
    assert isinstance(found, Rule)
    assert (found.threshold, found.signal) == (SAFE_COSINE, "cosine")
    assert "not calibrated" in found.says
    other = semantic_rule(CacheConfig(), calibration(encoder="another"), "e", [], 0)
    assert isinstance(other, Rule)
    assert other.threshold == SAFE_COSINE


def test_config_wins_over_calibration() -> None:
    """A threshold that someone set is used as it is, and is told to have no bound."""
    found = semantic_rule(CacheConfig(threshold=0.85), calibration(None), "e", [], 0)
    assert isinstance(found, Rule)
    assert found.threshold == 0.85
    assert "no bound" in found.says


def test_calibration_sets_the_threshold_or_turns_it_off() -> None:
    """Where a threshold holds it is used with its bound; where none does, or the promise was tightened since, it is off."""
    found = semantic_rule(CacheConfig(), calibration(), "e", [], 1000)
    assert isinstance(found, Rule)
    assert (found.threshold, found.says) == (0.9, "at most 4.0% wrong by calibration")
    assert semantic_rule(CacheConfig(), calibration(None), "e", [], 0) == Off("nothing holds")
    assert isinstance(semantic_rule(CacheConfig(max_wrong_rate=0.01), calibration(), "e", [], 0), Off)


def test_grown_cache_is_told_to_calibrate_anew() -> None:
    """Wrong hits grow with a cache, so one that has more than doubled says so at each hit."""
    found = semantic_rule(CacheConfig(), calibration(entries=1000), "e", [], 2001)
    assert isinstance(found, Rule)
    assert "at 1000 cached questions, now 2001: calibrate anew" in found.says
    small = semantic_rule(CacheConfig(), calibration(entries=0), "e", [], 2000)
    assert isinstance(small, Rule)
    assert "anew" not in small.says


@pytest.mark.parametrize(
    ("verdicts", "off"),
    [
        (judged(1, 4), False),  # one of five proves nothing about 5 %
        (judged(10, 40), True),
        (judged(2, 98), False),
        (judged(50, 0, "feedback"), False),  # feedback names wrong hits only: no sample
        (judged(10, 40, "shadow"), True),
    ],
)
def test_audits_turn_off_what_breaks_the_promise(verdicts: list[Judged], off: bool) -> None:
    """The layer goes off once audited hits show, with 95 % confidence, a wrong rate above the promised one."""
    assert isinstance(semantic_rule(CacheConfig(), calibration(), "e", verdicts, 0), Off) == off


def test_breaker_opens_rests_and_tries_once() -> None:
    """Outages in a row open it; after the rest one caller is let through; its success closes it, its failure does not."""
    breaker, down = Breaker(), TeacherError("down", reason="http 503")
    for _ in range(OUTAGES):
        assert breaker.refuses(0.0) is None
        breaker.report(down, 0.0)
    assert "left alone for 30 s" in str(breaker.refuses(0.0))
    assert breaker.refuses(REST_S) is None
    assert breaker.refuses(REST_S) is not None  # a second caller waits for the trial's end
    breaker.report(down, REST_S)
    assert breaker.refuses(REST_S + 1) is not None
    assert breaker.refuses(2 * REST_S) is None
    breaker.report(None, 2 * REST_S)
    assert breaker.refuses(2 * REST_S) is None


def test_who_gives_up_waiting_says_nothing() -> None:
    """Clients that go away between timeouts do not keep it closed, and a trial that is cancelled does not close it."""
    breaker = Breaker()
    hangs, gone = TeacherError("no answer", reason="timeout"), TeacherError("cancelled", reason=CANCELLED)
    for _ in range(OUTAGES):
        breaker.report(hangs, 0.0)
        breaker.report(gone, 0.0)
    assert breaker.refuses(0.0) is not None
    assert breaker.refuses(REST_S) is None
    breaker.report(gone, REST_S)
    assert breaker.refuses(REST_S) is None  # another trial
    assert breaker.refuses(REST_S) is not None


def test_bad_question_is_no_outage() -> None:
    """A refused or blocked question says nothing about the teacher; a spent quota does."""
    breaker = Breaker()
    for reason in ("http 400", "SAFETY", "empty") * OUTAGES:
        breaker.report(TeacherError("no", reason=reason), 0.0)
    assert breaker.refuses(0.0) is None
    for _ in range(OUTAGES):
        breaker.report(QuotaError("spent"), 0.0)
    assert breaker.refuses(0.0) is not None


@pytest.mark.parametrize(
    "text",
    [
        "Why is AIza" + "SyA1234567890abcdefghijklmnopqrstuv refused?",
        "my key is sk-" + "abcdefghijklmnop1234",
        "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2",
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def",
        "-----BEGIN RSA PRIVATE KEY-----",
        "password: hunter2hunter2",
        "client_secret = GOCSPX-abcdefgh1",
        "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZabcdefgh",
        "Bearer abcdef1234567890 gets a 401",
        "Authorization: Basic dXNlcjpwYXNz",
        "密碼是abc12345怎麼改",
        "我的密码\uff1ahunter2222 忘了",
        "postgres://user:pass@host/db",
        "4111 1111 1111 1111",
        "what does 9f86d081884c7d659a2feaa0c55ad015 decode to?",
    ],
)
def test_key_like_strings_are_found(text: str) -> None:
    """Each kind of secret is found, and its name does not repeat it."""
    found = secret_in(text)
    assert found is not None
    assert not set(found.split()) & {word for word in text.split() if any(sign.isdigit() for sign in word)}


@pytest.mark.parametrize(
    "text",
    [
        "How much GPU memory do I need to run a small model?",
        "What is a password manager?",
        "pneumonoultramicroscopicsilicovolcanoconiosis",
        "What does torch.nn.functional.scaled_dot_product_attention do?",
        "什麼是量化?",
        "密碼是什麼意思?",
        "Is the bearer of a 1234 check its owner?",
        "What does basic authorization mean?",
        "Is 1,000,000 tokens a lot?",
    ],
)
def test_plain_questions_hold_no_secret(text: str) -> None:
    """Long words, code and numbers are no keys."""
    assert secret_in(text) is None


def test_agreement_is_word_f1() -> None:
    """Equal answers agree fully, disjoint ones not at all, in both scripts; half the words give a half."""
    assert agreement("Use 8 GB.", "use 8 gb") == 1.0
    assert agreement("a b", "c d") == 0.0
    assert agreement("a b", "b c") == 0.5
    assert agreement("量化模型", "量化") == pytest.approx(2 / 3)


def test_draw_keeps_its_share_and_repeats() -> None:
    """About the wanted share is drawn, and the same thing is always drawn alike."""
    picked = [drawn(0.2, str(number)) for number in range(5000)]
    assert 0.17 < sum(picked) / 5000 < 0.23
    assert picked == [drawn(0.2, str(number)) for number in range(5000)]
    assert not any(drawn(0.0, str(number)) for number in range(100))
    assert all(drawn(1.0, str(number)) for number in range(100))
