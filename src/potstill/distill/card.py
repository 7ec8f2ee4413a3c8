"""The model card: a header that model hubs read, how good the student is, and where it comes from. Pure."""

from __future__ import annotations

from potstill.distill.report import meaning, score_rows, summary
from potstill.records import Score, Verdict, text_sha
from potstill.student.manifest import Energy, StudentManifest
from potstill.wording import counted

TERMS = (
    "The answers it learned from come from a hosted model. Its provider's terms hold for this model too: Gemini's"
    " additional terms restrict using the output to develop models that compete with the service. Read them before you"
    " publish or sell the student."
)


def card(manifest: StudentManifest, verdict: Verdict) -> str:
    """`README.md` of the student, with its lineage."""
    lines = [
        "---",
        f"base_model: {manifest.base!r}",
        "library_name: peft",
        "tags: [lora, distillation, potstill]",
        "---",
        "",
        f"# {manifest.name}",
        "",
        f"LoRA ({manifest.adapters}) on `{manifest.base}`, distilled by potstill from `{verdict.teacher_model}`.",
        "",
        f"Can it replace the teacher? **{'Yes' if verdict.can_replace else 'No'}**: {verdict.reason}.",
        "",
        *(f"- {line}" for line in summary(verdict)),
        "",
        "| on held-out prompts | n | exact | score | 95 % | NLL | meaning |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, score) for name, score in score_rows(verdict)),
        "",
        f"Score: {verdict.metric}; 95 % bootstrap interval over prompts. NLL: nats a token of the teacher's answers."
        f" {meaning(verdict)}".rstrip(),
        "",
        "## Lineage",
        "",
        *(f"- {line}" for line in lineage(manifest, verdict)),
        "",
        "## Terms",
        "",
        TERMS,
        "",
    ]
    return "\n".join(lines)


def lineage(manifest: StudentManifest, verdict: Verdict) -> list[str]:
    """What the student was made from, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()) if version)
    return [
        f"teacher: {verdict.teacher_model}; {counted(manifest.samples, 'answer')}, for ${verdict.paid_usd:f} with those held out",
        f"base: {manifest.base}, revision {manifest.revision or 'not named'}, weights sha256 {manifest.base_sha[:16]}",
        f"chat template sha256 {manifest.template_sha[:16]}",
        *(f"role {role.name}: system prompt sha256 {text_sha(role.system)[:16]}" for role in manifest.roles),
        *(f"dataset/{name}.jsonl sha256 {sha[:16]}" for name, sha in manifest.dataset_sha.items()),
        f"trained {manifest.train_seconds:g} s on {manifest.supervised_tokens} answer tokens a pass; plan {manifest.plan_id}",
        _electricity(manifest.energy),
        _judging(verdict),
        f"versions: {versions}",
    ]


def _electricity(energy: Energy | None) -> str:
    if energy is None:
        return "electricity of training: not known, this machine has no counter that can be read"
    most = "measured" if energy.measured else "at most"
    return f"electricity of training: {most} {energy.kwh:.3g} kWh ({energy.how})"


def _judging(verdict: Verdict) -> str:
    """The verdict as part of the lineage: when, at which margin, and what the judge cost."""
    judge = "" if verdict.duel is None else f"; the judge, {verdict.teacher_model}, cost ${verdict.duel.cost_usd:f}"
    settings = f"margin {verdict.margin:g}, settings {verdict.evaluation_id}"
    return f"verdict of {verdict.created_at:%Y-%m-%d} on {counted(verdict.student_score.n, 'held-out answer')}: {settings}{judge}"


def _row(name: str, score: Score) -> str:
    nll = "-" if score.nll is None else f"{score.nll:.2f}"
    near = "-" if score.similarity is None else f"{score.similarity:.2f}"
    span = f"{score.low:.2f} to {score.high:.2f}"
    return f"| {name} | {score.n} | {score.exact:.0%} | {score.score:.2f} | {span} | {nll} | {near} |"
