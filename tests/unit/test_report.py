"""The report as a page for people: answers as they were written, and curves that lie within their frame."""

from __future__ import annotations

from pathlib import Path

from tests.unit.test_similarity import said
from tests.unit.test_verdict import NOW, case

from potstill.distill.judge import Evidence, verdict
from potstill.distill.report import page, plot_loss

CODE = "```python\ndef f():\n    return 1\n```"


def test_the_lines_of_an_answer_stay(tmp_path: Path) -> None:
    """Code, lists and Chinese paragraphs are shown line by line, within their cell."""
    rows = [said("退貨：\n1. 登入\n2. 填寫表單", CODE)]
    shown = page(verdict(case(), Evidence(rows, rows), NOW), Evidence(rows, rows), tmp_path / "none")
    assert CODE in shown
    assert "退貨：\n1. 登入\n2. 填寫表單" in shown
    (cells,) = (rule for rule in shown.split("}") if rule.endswith("pre-wrap"))
    assert cells.startswith(".sides td{")


def test_a_loss_that_hardly_moves_lies_within_its_frame(tmp_path: Path) -> None:
    """Two points of one height are no line at the picture's edge: there is room above the highest."""
    from matplotlib.image import imread

    plot_loss([{"step": 10, "loss": 12.1}, {"step": 18, "eval_loss": 12.0}], tmp_path / "loss.png")
    picture = imread(tmp_path / "loss.png")[:, :, :3]
    blue = (picture[:, :, 2] > 0.6) & (picture[:, :, 0] < 0.3)
    rows = blue.any(axis=1).nonzero()[0]
    frame = (picture.max(axis=2) < 0.2).mean(axis=1) > 0.5
    assert rows.min() > frame.nonzero()[0].min() + 10
