"""An optional cross-encoder: a tiny one that is built here, in a calibration and behind a router."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.routing import PARAPHRASE, QUESTION, PricedTeacher, config, routing
from tests.unit.test_cache_rule import calibration

from potstill.config import CacheConfig, Config, with_values
from potstill.errors import MachineError
from potstill.files import write_atomic
from potstill.infer.calibrating import run_calibration
from potstill.infer.calibration import Circumstances, calibrate
from potstill.infer.cross import CrossScorer
from potstill.infer.encoder import HashingEncoder
from potstill.infer.pairs import Pair
from potstill.infer.rule import SAFE_COSINE, Rule, semantic_rule
from potstill.workspace import Workspace


def build(folder: Path, labels: int = 1) -> Path:
    """A BERT of one layer with random weights, and a tokenizer of the letters."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz?"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*words, *(f"##{letter}" for letter in words[5:])]), encoding="utf-8")
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=2 * len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=labels, max_position_embeddings=128,
    )  # fmt: skip
    BertForSequenceClassification(shape).save_pretrained(folder)
    BertTokenizerFast(vocab_file=str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cross-encoder's folder."""
    return build(tmp_path_factory.mktemp("cross") / "tiny")


def chosen(folder: Path, **cache: object) -> Config:
    """The tests' config, uncalibrated, with a cross-encoder."""
    return with_values(config(), cache={"threshold": None, "cross_encoder": str(folder), "deadline_s": 60, **cache})


def test_scores_are_probabilities_of_a_named_model(tiny: Path) -> None:
    """Each pair has a number in 0..1, the same each time; the id carries the weights."""
    scorer = CrossScorer(str(tiny))
    first = scorer.score([(QUESTION, PARAPHRASE), (QUESTION, "a cat")])
    assert all(0 <= score <= 1 for score in first)
    assert first == pytest.approx(CrossScorer(str(tiny)).score([(QUESTION, PARAPHRASE), (QUESTION, "a cat")]))
    assert scorer.id.startswith("tiny/")


def test_a_model_that_gives_logits_gives_probabilities_here(tiny: Path, tmp_path: Path) -> None:
    """What a model's file says of its last step changes no score: thresholds and floors are probabilities."""
    copy = shutil.copytree(tiny, tmp_path / "logits")
    about = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    about["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (copy / "config.json").write_text(json.dumps(about), encoding="utf-8")
    pairs = [(QUESTION, PARAPHRASE), (QUESTION, "a cat")]
    assert CrossScorer(str(copy)).score(pairs) == pytest.approx(CrossScorer(str(tiny)).score(pairs))


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    """A model with two outputs, and a folder without one, are errors that name the setting."""
    with pytest.raises(MachineError, match="2 outputs"):
        CrossScorer(str(build(tmp_path / "two", labels=2)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MachineError, match="cannot be loaded"):
        CrossScorer(str(tmp_path / "empty"))


def test_a_calibration_tries_it_and_pays_for_that_in_its_bound(tiny: Path, tmp_path: Path) -> None:
    """Its thresholds stand in the curve beside the cosine's, and every bound is at the level divided by one signal more."""
    pairs = tuple(Pair(f"what is {n} a", f"what is {n} b", n % 3 > 0) for n in range(120))
    cache = CacheConfig(encoder="hashing", cross_encoder=str(tiny))
    found = run_calibration(cache, Workspace(tmp_path / "with"), pairs, "test")
    without = run_calibration(CacheConfig(encoder="hashing"), Workspace(tmp_path / "without"), pairs, "test")
    assert found.cross_encoder == CrossScorer(str(tiny)).id
    assert {point.signal for point in found.curve} == {"cosine", "cross_encoder"}
    served = {point.threshold: point for point in found.curve if point.signal == "cosine" and point.served}
    assert served
    assert all(
        served[point.threshold].upper > point.upper
        for point in without.curve
        if point.threshold in served and point.wrong < point.served
    )


def test_it_is_chosen_where_it_knows_more_than_the_cosine() -> None:
    """A cross-encoder that is always right wins over a cosine that knows nothing, with a bound that meets the promise."""
    pairs = [Pair(f"first {n}", f"first again {n}", n % 2 == 0) for n in range(2000)]
    about = Circumstances("e", "test", 0.05, 0, calibration().created_at, cross_encoder="wise/1")
    found = calibrate(
        pairs, lambda part: [0.9] * len(part), about, lambda part: [0.99 if pair.same else 0.01 for pair in part]
    )
    assert (found.signal, found.cross_encoder) == ("cross_encoder", "wise/1")
    assert found.upper is not None
    assert found.upper <= 0.05


def test_calibrated_with_it_and_configured_without_is_the_cautious_default() -> None:
    """A rule that needs a cross-encoder is not in force where none is set, and the answer says so."""
    found = calibration().model_copy(update={"signal": "cross_encoder", "cross_encoder": "wise/1"})
    rule = semantic_rule(CacheConfig(), found, "e", [], 0)
    assert isinstance(rule, Rule)
    assert rule.threshold == SAFE_COSINE
    assert "wise/1, which is not set" in rule.says
    rule = semantic_rule(CacheConfig(cross_encoder="wise"), found, "e", [], 0)
    assert isinstance(rule, Rule)
    assert rule.signal == "cross-encoder"


async def test_router_serves_by_its_score(tiny: Path, tmp_path: Path) -> None:
    """With a calibration on its scores it decides about near questions; another model than calibrated is passed by."""
    score = CrossScorer(str(tiny)).score([(PARAPHRASE, QUESTION)])[0]
    made = calibration(encoder=HashingEncoder().id).model_copy(
        update={"signal": "cross_encoder", "cross_encoder": CrossScorer(str(tiny)).id, "threshold": score - 1e-4}
    )
    file = Workspace(tmp_path).calibration
    write_atomic(file, made.model_dump_json())
    teacher = PricedTeacher(lambda _: "Gemini says so")
    async with routing(tmp_path, teacher, chosen=chosen(tiny)) as router:
        await router.answer(QUESTION)
        hit = (await router.answer(PARAPHRASE)).trace
        other = made.model_copy(update={"cross_encoder": "other/1"})
        write_atomic(file, json.dumps(other.model_dump(mode="json")))
        refused = (await router.answer(f"{PARAPHRASE} please")).trace
    assert hit.route == "semantic"
    assert hit.score == pytest.approx(score, abs=1e-5)
    assert "cross-encoder 0." in hit.reason
    assert refused.route == "teacher"
    assert "calibrated was other/1" in refused.reason
