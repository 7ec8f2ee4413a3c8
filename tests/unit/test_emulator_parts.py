"""The emulator's pure parts: quotas, cuts, lengths, the nearest question, embeddings, request checks."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.samples import line_of

from potstill.config import Config
from potstill.generate.documents import Passage
from potstill.generate.forms import read_texts
from potstill.generate.grow import Growing
from potstill.generate.judge import Rubric
from potstill.generate.languages import fits, language_of
from potstill.generate.sift import Score
from potstill.pricing.tokens import estimate_tokens
from potstill.records import Message
from potstill.teacher.calls import answer_request
from potstill.teacher.emulator.answering import Answerer, instance, stopped
from potstill.teacher.emulator.checks import camel, refused_body, refused_deadline
from potstill.teacher.emulator.faq import Faq, Item, load_faq
from potstill.teacher.emulator.faults import Faults
from potstill.teacher.emulator.models import embedding, page
from potstill.teacher.emulator.quotas import Exceeded, Quotas
from potstill.teacher.emulator.replies import Asked
from potstill.teacher.emulator.settings import EmulatorSettings

MODEL = "gemini-3.5-flash-lite"
STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 400)), max_size=80)


@given(STEPS, st.integers(1, 5), st.integers(400, 1000), st.integers(1, 12))
def test_no_window_admits_more_than_its_quota(steps: list[tuple[float, int]], rpm: int, tpm: int, rpd: int) -> None:
    """Whatever arrives when, no minute holds more requests or tokens than allowed, no day more requests."""
    quotas = Quotas(EmulatorSettings(rpm=rpm, tpm=tpm, rpd=rpd, minute_s=60, day_s=600))
    now, admitted = 1_000_000.0, []
    for pause_s, tokens in steps:
        now += pause_s
        refusal = quotas.admit(MODEL, now, tokens)
        if refusal is None:
            admitted.append((now, tokens))
        else:
            assert 0 < refusal.retry_s <= 60
    for width_s, limit in ((60, rpm), (600, rpd)):
        windows = [int(at // width_s) for at, _ in admitted]
        assert all(windows.count(window) <= limit for window in windows)
    for window in {int(at // 60) for at, _ in admitted}:
        assert sum(tokens for at, tokens in admitted if int(at // 60) == window) <= tpm


def test_a_wait_as_advised_is_enough() -> None:
    """A refused request passes when it comes back after its advice; one by the day does not."""
    quotas = Quotas(EmulatorSettings(rpm=1, rpd=2))
    assert quotas.admit(MODEL, 30.0, 1) is None
    refused = quotas.admit(MODEL, 31.0, 1)
    assert isinstance(refused, Exceeded)
    assert quotas.admit(MODEL, 31.0 + refused.retry_s, 1) is None
    daily = quotas.admit(MODEL, 500.0, 1)
    assert daily is not None
    assert "PerDay" in daily.quota_id
    assert quotas.admit(MODEL, 500.0 + daily.retry_s, 1) is not None


def test_the_day_ends_at_midnight_pacific() -> None:
    """The count of the day is fresh at 08:00 UTC in winter, not at midnight UTC."""
    quotas = Quotas(EmulatorSettings(rpd=1))
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
    assert quotas.admit(MODEL, noon, 1) is None
    assert quotas.admit(MODEL, noon + 13 * 3600, 1) is not None
    assert quotas.admit(MODEL, noon + 19.9 * 3600, 1) is not None
    assert quotas.admit(MODEL, noon + 20 * 3600, 1) is None


def test_spend_opens_again_after_ten_minutes() -> None:
    """Dollars are counted over all models, and are fresh in the next ten minutes."""
    quotas = Quotas(EmulatorSettings(spend_usd=Decimal(1), minute_s=1))
    quotas.spend(5.0, Decimal("0.99"))
    assert quotas.admit(MODEL, 6.0, 1) is None
    quotas.spend(6.0, Decimal("0.01"))
    assert quotas.admit("another", 7.0, 1) is not None
    assert quotas.admit("another", 10.0, 1) is None


@given(st.text(max_size=300), st.integers(0, 60))
def test_a_cut_text_is_the_longest_beginning_within_the_limit(text: str, limit: int) -> None:
    """It is a beginning of the text, within the limit, and one character more would pass it."""
    cut, reason = stopped(text, (), limit)
    assert text.startswith(cut)
    assert estimate_tokens(cut) <= limit
    assert (reason == "MAX_TOKENS") == (cut != text)
    if cut != text:
        assert estimate_tokens(text[: len(cut) + 1]) > limit


@given(st.text(min_size=1, max_size=80), st.integers(1, 300))
def test_a_drawn_length_is_reached(question: str, tokens: int) -> None:
    """Without a spread an answer has its median length, or a token less, and is the same each time."""
    answerer = Answerer(EmulatorSettings(answer_tokens=tokens))
    asked = Asked(MODEL, {"contents": [{"parts": [{"text": question}]}]})
    answered = answerer.answer(asked)
    assert tokens - 1 <= answered.usage.output_tokens <= tokens
    assert answerer.answer(Asked(MODEL, asked.body)) == answered


def test_the_nearest_question_is_the_one_with_the_largest_cosine() -> None:
    """Every question of the shipped FAQ finds its own topic; something else finds none; a memory changes nothing."""
    faq = load_faq("hardware.en")
    for item in faq._items:
        for question in item.questions:
            assert faq.nearest(question) is faq.nearest(question)
            found = faq.nearest(question)
            assert found is not None
            assert found.id == item.id
    assert faq.nearest("Zebras graze peacefully") is None
    small = Faq((Item(id="a", questions=("red apples",), answers={"default": "A"}),), {})
    assert small.nearest("red apples") is not None
    assert small.nearest("") is None


@given(st.text(max_size=60), st.integers(1, 64))
def test_embeddings_are_unit_vectors(text: str, dimensions: int) -> None:
    """Any text, the empty one too, has a vector of length one, the same each time."""
    vector = embedding(text, dimensions)
    assert len(vector) == dimensions
    assert sum(value * value for value in vector) == pytest.approx(1)
    assert embedding(text, dimensions) == vector


@given(st.integers(0, 50), st.integers(1, 20))
def test_pages_hold_everything_once(count: int, size: int) -> None:
    """Following the tokens gives every item once, in order."""
    seen, token = [], None
    while True:
        items, token = page(list(range(count)), {"pageSize": str(size), **({"pageToken": token} if token else {})}, 10)
        seen += items
        if token is None:
            break
    assert seen == list(range(count))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["contents", "parts", "text", "role", "generationConfig", "x"]), inner, max_size=3),
    max_leaves=10,
))  # fmt: skip
def test_no_body_of_any_shape_breaks_the_checks(inner: object) -> None:
    """A body is taken or refused with a 400, and what is taken can be answered."""
    for body in ({"contents": inner}, {"contents": [inner]}, {"contents": [{"parts": inner}]}, {"contents": [{"parts": [{"text": "Q"}]}], "generationConfig": inner}):  # fmt: skip
        given_body = camel(body)
        refusal = refused_body(MODEL, given_body)
        if refusal is None:
            Answerer(EmulatorSettings()).answer(Asked(MODEL, given_body))
        else:
            assert refusal.status == 400


@pytest.mark.parametrize(
    ("deadline", "taken"), [(None, True), ("10", True), ("9.9", False), ("-1", False), ("soon", False)]
)
def test_deadlines(deadline: str | None, taken: bool) -> None:
    """Ten seconds are the least, and what is no number is refused too."""
    assert (refused_deadline(deadline) is None) == taken


def test_schemas_are_filled() -> None:
    """Types by name, in capitals, by number and in lists give values of their kind."""
    schema = {
        "type": 6,
        "properties": {
            "text": {"type": "STRING"},
            "maybe": {"type": ["null", "integer"], "minimum": 3},
            "yes": {"type": "boolean"},
            "kind": {"type": "string", "enum": ["a", "b"]},
            "list": {"type": 5, "items": {"type": 1}},
        },
    }
    found = instance(schema, "answer", ("answer",), "1. other\n2. the answer is here")
    assert found == {"text": "answer", "maybe": 2, "yes": True, "kind": "a", "list": ["answer"]}


def test_asked_for_questions_it_stays_on_the_subject() -> None:
    """Shown questions of one topic, it gives as many others of that topic as are asked for, the same ones each time."""
    faq = load_faq("hardware.en")
    shown = ("How much GPU memory does a small model need?", "How much VRAM does a language model take?")
    schema = {"type": "object", "properties": {"questions": {"type": "array", "items": {"type": "string"}}}}
    text = "Write 3 new questions.\n" + "\n".join(f"- {question}" for question in shown)
    body = {
        "contents": [{"role": "user", "parts": [{"text": text}]}],
        "generationConfig": {"responseJsonSchema": schema},
    }
    answerer = Answerer(EmulatorSettings(faq="hardware.en"))
    found = json.loads(answerer.text(Asked(MODEL, body)))["questions"]
    assert found == json.loads(answerer.text(Asked(MODEL, body)))["questions"]
    assert len(found) == 3
    assert not set(found) & set(shown)
    assert {item.id for item in map(faq.nearest, (*found, *shown)) if item is not None} == {"gpu-memory"}


def test_faults_come_at_their_shares_and_in_their_place() -> None:
    """Over many draws each fault has its share; lines of a batch meet no broken connections, jobs only their own."""
    faults = Faults(EmulatorSettings(faults={"http-503": 0.2, "reset": 0.3, "batch-stuck": 0.5}))
    drawn = [faults.of_request() for _ in range(4000)]
    assert drawn.count("http-503") == pytest.approx(800, abs=120)
    assert drawn.count("reset") == pytest.approx(1200, abs=140)
    assert {faults.of_line() for _ in range(200)} == {None, "http-503"}
    assert {faults.of_job() for _ in range(200)} == {None, "batch-stuck"}
    assert not any(faults.hits("batch-lost") for _ in range(100))


@pytest.mark.parametrize(
    ("language", "question", "passage"),
    [
        ("zh-TW", "咖啡機多久要除垢一次？", "每兩個星期用檸檬酸除垢一次。水質偏硬時改成每個星期。"),
        (
            "en",
            "How often is a machine descaled?",
            "Descale it every two weeks with citric acid. Weekly in hard water.",
        ),
    ],
)
def test_a_question_that_it_does_not_know_fares_as_one_that_it_does(language: str, question: str, passage: str) -> None:
    """It is answered in its own language, the answer is marked as right, and a passage gives questions to itself."""
    config = Config(language=language)
    answerer = Answerer(EmulatorSettings(faq=f"hardware.{language}"))
    asked = answer_request(config, (Message(role="user", content=question),), sample=0, role="generalist")
    answer = answerer.text(Asked(MODEL, asked.body))
    assert fits(language_of(answer), language)
    rubric = Rubric(config)
    for text, share in ((answer, 1.0), ("Something else.", 0.0)):
        mark = rubric.request(line_of(("user", question), ("assistant", text)))
        score = rubric.read(answerer.text(Asked(MODEL, mark.body)))
        assert isinstance(score, Score)
        assert score.share == share
    about = Growing.of(config).from_passage(Passage(passage, "guide.md:1"), 0)
    found = read_texts(answerer.text(Asked(MODEL, about.request.body)))
    assert len(found) == 2
    assert all(fits(language_of(text), language) for text in found)
