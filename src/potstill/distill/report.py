"""The student for a reader: model card, report page, loss plot. All text in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from potstill.distill.judge import Judged
from potstill.records import Score, Verdict
from potstill.student.manifest import StudentManifest

STYLE = (
    "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.4rem;text-align:left;"
    "vertical-align:top}.yes{color:#067a3b}.no{color:#a33}"
)
EXAMPLES = 40


def card(manifest: StudentManifest, verdict: Verdict) -> str:
    """The model card: a header that model hubs read, then what the student is and how good."""
    lines = [
        "---",
        f"base_model: {manifest.base!r}",
        "library_name: peft",
        "tags: [lora, distillation, potstill]",
        "---",
        "",
        f"# {manifest.name}",
        "",
        f"LoRA ({manifest.adapters}) on `{manifest.base}`, distilled by potstill.",
        f"Learned from {manifest.samples} answers of `{verdict.teacher_model}`.",
        "",
        f"Roles: {', '.join(f'`{role.name}`' for role in manifest.roles)}.",
        "",
        f"Can it replace the teacher? **{'Yes' if verdict.can_replace else 'No'}**: {verdict.reason}.",
        "",
        "| on held-out prompts | n | exact | score | 95 % |",
        "|---|---|---|---|---|",
        *(_card_row(name, score) for name, score in _scores(verdict)),
        "",
        f"Score: {verdict.metric}. The provider's terms for the teacher's answers hold for this model too.",
        "",
    ]
    return "\n".join(lines)


def page(verdict: Verdict, judged: Sequence[Judged]) -> str:
    """`report.html`: one file, nothing loaded from elsewhere."""
    rows = "".join(_page_row(name, score) for name, score in _scores(verdict))
    examples = "".join(_example(item) for item in sorted(judged, key=lambda item: item.score)[:EXAMPLES])
    answer = "yes" if verdict.can_replace else "no"
    even = verdict.break_even_requests
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(verdict.student)}</title><style>{STYLE}</style>"
        f"<h1>{escape(verdict.student)}</h1><p>Can it replace {escape(verdict.teacher_model)}? "
        f"<b class={answer}>{answer.capitalize()}</b>: {escape(verdict.reason)}.</p>"
        f"<p>Router: {escape(verdict.router.reason)}. Its data cost ${verdict.paid_usd:f}"
        f"{f', paid back after {even} requests' if even else ''}.</p>"
        f"<table><tr><th>on held-out prompts<th>n<th>exact<th>score<th>95 %</tr>{rows}</table>"
        f"<p>Score: {escape(verdict.metric)}.</p><p><img src=loss.png alt='training and validation loss' width=700></p>"
        f"<h2>Held-out answers, the worst first</h2>"
        f"<table><tr><th>role<th>question<th>teacher<th>student<th>score</tr>{examples}</table></html>\n"
    )


def plot_loss(log: Sequence[dict[str, float]], path: Path) -> None:
    """`loss.png`: training and validation loss by step."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=150)
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        points = [(entry["step"], entry[key]) for entry in log if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _scores(verdict: Verdict) -> list[tuple[str, Score]]:
    roles = [(f"student, {name}", score) for name, score in verdict.by_role.items()]
    return [("base, before", verdict.base_score), ("student, after", verdict.student_score), *roles]


def _card_row(name: str, score: Score) -> str:
    return f"| {name} | {score.n} | {score.exact:.0%} | {score.score:.2f} | {score.low:.2f} to {score.high:.2f} |"


def _page_row(name: str, score: Score) -> str:
    span = f"{score.low:.2f} to {score.high:.2f}"
    return f"<tr><td>{escape(name)}<td>{score.n}<td>{score.exact:.0%}<td>{score.score:.2f}<td>{span}</tr>"


def _example(item: Judged) -> str:
    texts = (item.sample.role, item.question, item.reference, item.answer.text)
    return "<tr>" + "".join(f"<td>{escape(text)}" for text in texts) + f"<td>{item.score:.2f}</tr>"
