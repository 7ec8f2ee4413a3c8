"""The verdict for a reader: `report.html`, one file that loads nothing, and the loss plot. All text in it is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from potstill.distill.asking import Judged
from potstill.distill.judge import Evidence
from potstill.records import Score, Verdict
from potstill.wording import counted

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{margin-bottom:.2rem}h2{margin-top:2.2rem}table{border-collapse:collapse;width:100%;margin:.6rem 0}
td,th{border-bottom:1px solid #ddd;padding:.35rem .6rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{overflow-wrap:normal}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.box{border-left:.4rem solid;padding:.6rem 1rem;background:#f6f7f8;font-size:1.1rem}.yes{border-color:#067a3b}
.no{border-color:#a33}.same{color:#067a3b}.small{color:#555;font-size:.9rem}img{max-width:100%;height:auto}
.chosen{background:#e9f6ee}.scroll{overflow-x:auto}.sides td{min-width:8rem;max-width:22rem;white-space:pre-wrap}.sides td.n{min-width:0;white-space:nowrap}
.bar{position:relative;height:1.5rem;background:#f1f2f4;min-width:10rem}.bar *{position:absolute;top:0;bottom:0}
.span{background:#9db9d6}.mean{width:2px;background:#123}.goal{width:2px;background:#a33}
.tally{display:flex;height:1.7rem;color:#fff;font-size:.9rem;text-align:center;max-width:44rem}
.tally div{overflow:hidden;line-height:1.7rem}.won{background:#067a3b}.tied{background:#777}.lost{background:#a33}
"""
EXAMPLES = 60
NLL = "NLL: nats a token of the teacher's answers."
UNKNOWN = "not measured"
UNASKED = "-"
JUDGED: dict[float | None, str] = {1.0: "better", 0.5: "equal", 0.0: "worse"}


def page(verdict: Verdict, evidence: Evidence, loss_plot: Path, made_from: Sequence[str] = ()) -> str:
    """`report.html`: the answer first, then scores, router, loss, and answers side by side, the worst first.

    `made_from`: its lineage, a line each.
    """
    answer = "yes" if verdict.can_replace else "no"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(verdict.student)}: the verdict</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(verdict.student)}</h1>",
        f"<p class=small>{escape(verdict.base)}, taught by {escape(verdict.teacher_model)}; {verdict.created_at:%Y-%m-%d}</p>",
        f"<p class='box {answer}'>Can it replace the teacher? <b>{answer.capitalize()}</b>: {escape(verdict.reason)}.</p>",
        f"<ul>{''.join(f'<li>{escape(line)}' for line in summary(verdict))}</ul>",
        "<h2>Held-out questions</h2>",
        _score_table(verdict),
        f"<p class=small>Score: {escape(verdict.metric)}; 95 % bootstrap interval over prompts. {NLL} {meaning(verdict)}</p>",
        _tally(verdict),
        "<h2>When the router may leave the teacher out</h2>",
        _router_table(verdict),
        "<h2>Training</h2>",
        _image(loss_plot),
        "<h2>Answers side by side, the worst first</h2>",
        _examples(evidence),
        "<h2>Where it comes from</h2>",
        f"<ul class=small>{''.join(f'<li>{escape(line)}' for line in made_from)}</ul>",
        "</body></html>\n",
    ]
    return "".join(parts)


def summary(verdict: Verdict) -> list[str]:
    """What else there is to say, a line each."""
    lines = [f"router: {verdict.router.reason}"]
    lines += [
        f"{role}: {'can' if fits else 'cannot'} replace the teacher in this role"
        for role, fits in sorted(verdict.replaces_by_role.items())
    ]
    if (ceiling := verdict.ceiling) is not None:
        span = f"{ceiling.low:.2f} to {ceiling.high:.2f}"
        lines.append(f"the teacher agrees with itself: {ceiling.score:.2f}, {span} ({ceiling.source}, n {ceiling.n})")
    if (duel := verdict.duel) is not None:
        lines.append(
            f"judged by the teacher in pairs: {duel.wins} better, {duel.ties} equal, {duel.losses} worse;"
            f" score {duel.score:.2f}, {duel.low:.2f} to {duel.high:.2f}; it cost ${duel.cost_usd:f}"
        )
    if (gain := verdict.gain) is not None:
        lines.append(
            f"the student before it scored {gain.earlier:.2f} on the same questions: {gain.gain:+.2f},"
            f" {gain.low:+.2f} to {gain.high:+.2f}; it is kept in earlier/{', and is the better one' if gain.gain < 0 else ''}"
        )
    if verdict.near_duplicates:
        lines.append(f"{verdict.near_duplicates} held-out answers left out: their questions stand in the training data")
    return [*lines, paid_back(verdict)]


def meaning(verdict: Verdict) -> str:
    """What the column of that name is, and what measured it; empty where none did."""
    if not verdict.encoder:
        return ""
    if verdict.encoder.startswith(UNKNOWN):
        return f"Meaning: {verdict.encoder}."
    if all(score.similarity is None for _, score in score_rows(verdict)):
        return f"Meaning: {UNKNOWN}, {verdict.encoder} cannot read these answers."
    return f"Meaning: cosine of the answers' embeddings by {verdict.encoder}; 1 says the same."


def paid_back(verdict: Verdict) -> str:
    """When the dataset's price is saved again."""
    cost = f"its data cost ${verdict.paid_usd:f}"
    if verdict.break_even_requests is None:
        return f"{cost}, which is not paid back: the student answers nothing in the teacher's place yet"
    share = f"of which the student answers {verdict.coverage_paid:.0%}"
    days = (
        f", {verdict.break_even_days:g} {'day' if verdict.break_even_days == 1 else 'days'} at {verdict.requests_a_day} a day"
        if verdict.requests_a_day
        else ""
    )
    return f"{cost}, paid back after {counted(verdict.break_even_requests, 'request')} {share}{days}"


def score_rows(verdict: Verdict) -> list[tuple[str, Score]]:
    """The scores to show, each with its name."""
    roles = [(f"student, {name}", score) for name, score in verdict.by_role.items()]
    return [("base, before", verdict.base_score), ("student, after", verdict.student_score), *roles]


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
    top = max((entry[key] for entry in log for key in ("loss", "eval_loss") if key in entry), default=1.0)
    axes.set_ylim(0, top * 1.05)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _score_table(verdict: Verdict) -> str:
    formed = any(score.well_formed is not None for _, score in score_rows(verdict))
    near = any(score.similarity is not None for _, score in score_rows(verdict))
    head = "<tr><th>answers of<th class=n>n<th class=n>exact<th class=n>score<th class=n>95 %<th>0 to 1<th class=n>NLL"
    head += f"{'<th class=n>meaning' if near else ''}{'<th class=n>JSON shape' if formed else ''}</tr>"
    rows = "".join(
        f"<tr><td>{escape(name)}<td class=n>{score.n}<td class=n>{score.exact:.0%}<td class=n>{score.score:.2f}"
        f"<td class=n>{score.low:.2f} to {score.high:.2f}<td>{_bar(score, verdict)}<td class=n>{_number(score.nll)}"
        f"{f'<td class=n>{_number(score.similarity, UNKNOWN)}' if near else ''}"
        f"{f'<td class=n>{_number(score.well_formed)}' if formed else ''}</tr>"
        for name, score in score_rows(verdict)
    )
    less = ", less the error of the teacher's own agreement" if verdict.ceiling else ""
    note = "" if verdict.duel else f" Red: the bar that the interval's lower end must reach{less}."
    return f"<div class=scroll><table>{head}{rows}</table></div><p class=small>Blue: the interval; dark: its mean.{note}</p>"


def _bar(score: Score, verdict: Verdict) -> str:
    """A score's interval on a line from 0 to 1, with the bar that decides, where agreement decides."""
    bar = (verdict.ceiling.score if verdict.ceiling else 1.0) - verdict.margin
    goal = "" if verdict.duel else f"<span class=goal style='left:{bar:.1%}'></span>"
    span = f"<span class=span style='left:{score.low:.1%};width:{score.high - score.low:.1%}'></span>"
    return f"<div class=bar>{span}<span class=mean style='left:{min(score.score, 0.99):.1%}'></span>{goal}</div>"


def _tally(verdict: Verdict) -> str:
    """The judge's word as one bar; nothing where none was asked."""
    if (duel := verdict.duel) is None:
        return ""
    parts = (("won", duel.wins, "better"), ("tied", duel.ties, "equal"), ("lost", duel.losses, "worse"))
    bar = "".join(f"<div class={kind} style='flex:{n}'>{n} {word}</div>" for kind, n, word in parts if n)
    return f"<p>The teacher as judge of {counted(duel.n, 'pair')}, each in both orders; the student's answer is</p><div class=tally>{bar}</div>"


def _router_table(verdict: Verdict) -> str:
    if not verdict.router.curve:
        return "<p class=small>No threshold could be tried: there are too few held-out prompts.</p>"
    rows = "".join(
        f"<tr class={'chosen' if point.threshold == verdict.router.threshold else 'tried'}>"
        f"<td class=n>{point.threshold:.3f}<td class=n>{point.coverage:.0%}<td class=n>{point.agreement:.1%}"
        f"<td class=n>{point.risk_high:.1%}<td class=n>${point.saved_usd_per_1000:.4f}</tr>"
        for point in verdict.router.curve
    )
    head = (
        "<tr><th class=n>threshold (mean log-probability)<th class=n>prompts above<th class=n>answered well"
        "<th class=n>risk at most<th class=n>saved per 1,000 requests</tr>"
    )
    note = (
        "Risk: upper bound of the share answered badly, one-sided 95 %. Thresholds are tried from the top, "
        f"and the first that fails ends it.{' Green: the rule.' if verdict.router.threshold is not None else ''}"
    )
    return f"<div class=scroll><table>{head}{rows}</table></div><p class=small>{note}</p>"


def _examples(evidence: Evidence) -> str:
    first = {item.sample.id: item.answer.text for item in evidence.before}
    ranked = sorted(evidence.after, key=lambda item: (item.score, item.points or 0.0))[:EXAMPLES]
    near, told = (any(getattr(item, name) is not None for item in evidence.after) for name in ("similarity", "points"))
    head = (
        f"<tr><th>role<th>question<th>teacher<th>student<th>base<th class=n>score{'<th class=n>meaning' if near else ''}"
        f"{'<th class=n>judge' if told else ''}<th class=n>logprob</tr>"
    )
    rows = (
        f"{_example(item, first)}{f'<td class=n>{_number(item.similarity)}' if near else ''}"
        f"{f'<td class=n>{JUDGED.get(item.points, UNASKED)}' if told else ''}"
        f"<td class=n>{_number(item.answer.mean_logprob)}</tr>"
        for item in ranked
    )
    return f"<div class=scroll><table class=sides>{head}{''.join(rows)}</table></div>"


def _example(item: Judged, first: dict[str, str]) -> str:
    kind = " class=same" if item.exact else ""
    return (
        f"<tr><td>{escape(item.sample.role)}<td>{escape(item.question)}<td>{escape(item.reference)}"
        f"<td{kind}>{escape(item.answer.text)}<td class=small>{escape(first.get(item.sample.id, ''))}"
        f"<td class=n>{item.score:.2f}"
    )


def _image(path: Path) -> str:
    if not path.is_file():
        return "<p class=small>no loss plot</p>"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<img src='data:image/png;base64,{data}' alt='training and validation loss by step' width=700>"


def _number(value: float | None, unknown: str = "-") -> str:
    return unknown if value is None else f"{value:.2f}"
