"""What `distill --dry-run` shows."""

from __future__ import annotations

from pathlib import Path

from tests.unit.test_dataset_reading import line, write
from tests.unit.test_template import make_tokenizer

from potstill.cli.distill_view import painted
from potstill.distill.data import encode, read_data
from potstill.distill.preview import counts, samples, stretches, warnings
from potstill.wording import visible
from potstill.workspace import Workspace


def test_the_trained_part_is_marked() -> None:
    """The text of a row falls into what is read and what is learned, and nothing of it is lost."""
    tokenizer = make_tokenizer("llama3_2")
    row = {"input_ids": tokenizer("ask ", add_special_tokens=False)["input_ids"], "labels": [-100] * 4}
    answer = tokenizer("heat<|eot_id|>", add_special_tokens=False)["input_ids"]
    both = {"input_ids": row["input_ids"] + answer, "labels": row["labels"] + answer}
    assert [(part.text, part.learned) for part in stretches(tokenizer, both)] == [
        ("ask ", False),
        ("heat<|eot_id|>", True),
    ]
    assert painted(stretches(tokenizer, both), colour=False) == "  | ask [[heat<|eot_id|>]]"
    assert painted(stretches(tokenizer, both), colour=True) == "  | ask \x1b[1;32mheat<|eot_id|>\x1b[0m"


def test_model_text_does_not_steer_the_terminal() -> None:
    """An escape sequence in an answer is shown as text."""
    assert visible("\x1b[2Jgone\x07 \u202eok\n熱") == "\\x1b[2Jgone\\x07 \\u202eok\n熱"


def test_what_was_lost_is_counted_and_said(tmp_path: Path) -> None:
    """A cut answer, a dropped one, a duplicate and a leak each stand in the counts, and in a sentence."""
    workspace = Workspace(tmp_path)
    train = line("ok", "short one") * 2 + line("a long answer " * 40, "cut me") + line("x", "way too long " * 60)
    write(workspace, train=train, test=line("held", "a fair question") + line("held", "cut me"))
    data = read_data(workspace, 0.85)
    tokenizer = make_tokenizer("qwen2_5")
    rows = encode(tokenizer, data.train, 400)
    found = counts(data, rows)
    assert {name: found[name] for name in ("samples", "truncated", "dropped", "duplicates", "leaks", "held_out")} == {
        "samples": 3,
        "truncated": 2,
        "dropped": 1,
        "duplicates": 1,
        "leaks": 1,
        "held_out": 1,
    }
    said = " ".join(warnings(data, rows))
    assert all(
        word in said
        for word in (
            "cut at",
            "dropped: 1 sample whose",
            "repeat another",
            "1 held-out sample whose",
            "'cut me'",
            "too few",
        )
    )
    assert len(samples(tokenizer, rows)) == 2
