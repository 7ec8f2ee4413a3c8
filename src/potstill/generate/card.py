"""The dataset card: a header that `datasets.load_dataset` and the hub read, then what a reader wants to know. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal

from potstill.generate.figures import DatasetManifest, Lengths
from potstill.wording import counted

LANGUAGE_NAMES = {
    "en": "English",
    "zh-TW": "Traditional Chinese",
    "zh-CN": "Simplified Chinese",
    "zh": "Chinese, written alike in both scripts",
    "other": "another language",
    "none": "no words",
}
HUB_LANGUAGES = {"en": "en", "zh-TW": "zh", "zh-CN": "zh", "zh": "zh"}


def card(manifest: DatasetManifest) -> str:
    """The card of a dataset, from its manifest alone."""
    return "\n".join([*_header(manifest), *_body(manifest), ""])


def _header(manifest: DatasetManifest) -> Iterator[str]:
    languages = sorted({HUB_LANGUAGES[role.language] for role in manifest.roles})
    yield from ("---", "configs:", "- config_name: default", "  data_files:")
    for name, count in manifest.samples.items():
        if count:
            yield from (f"  - split: {name}", f"    path: {name}.jsonl")
    yield from ("language:", *(f"- {language}" for language in languages))
    yield from ("tags:", "- synthetic", "- distillation", "- potstill", "---", "")


def _body(manifest: DatasetManifest) -> Iterator[str]:
    figures = manifest.figures
    yield from ("# Dataset made by potstill", "", _summary(manifest), "")
    yield from _table("split | samples", manifest.samples)
    yield from _table("role | samples", figures.by_role)
    yield from _table("language of the answers | samples", _named(figures.languages))
    if set(figures.turns) - {"1"}:
        yield from _table("questions in a chat | samples", figures.turns)
    yield from _lengths({"question": figures.prompt_chars, "answer": figures.answer_chars})
    yield from ("## Sifted out", "", _sifted(manifest), "")
    yield from _table("reason | answers", manifest.rejected)
    yield from ("## Splits", "", _splits(manifest), "")
    yield from ("## Cost", "", _cost(manifest), "")
    yield from ("The answers come from a hosted model. Its provider's terms hold for what is trained on them.", "")
    yield from ("```python", "from datasets import load_dataset", "", 'data = load_dataset("path/to/dataset")', "```")


def _summary(manifest: DatasetManifest) -> str:
    models = "`, `".join(manifest.models_answered) or manifest.teacher_model
    count = sum(manifest.samples.values())
    roles = ", ".join(f"`{role.name}` ({role.language})" for role in manifest.roles)
    asked = [counted(manifest.prompts, "prompt")] if manifest.prompts or not manifest.traced_prompts else []
    asked += [f"{counted(manifest.traced_prompts, 'question')} of `infer`"] if manifest.traced_prompts else []
    to = f"{' and '.join(asked)} in {counted(len(manifest.roles), 'role')}"
    return f"{counted(count, 'answer')} of `{models}` to {to}: {roles}."


def _sifted(manifest: DatasetManifest) -> str:
    count = sum(manifest.rejected.values())
    if not count:
        return "Nothing."
    return f"{counted(count, 'answer')}, each with its reason in `rejected.jsonl`."


def _splits(manifest: DatasetManifest) -> str:
    groups = sum(manifest.alike_prompts.values())
    prompts = sum(int(size) * count for size, count in manifest.alike_prompts.items())
    near = f" {prompts} prompts are nearly the same as another, in {counted(groups, 'group')}." if groups else ""
    return f"All samples of one prompt, and of prompts that are nearly the same, are in one split.{near}"


def _cost(manifest: DatasetManifest) -> str:
    total, kept = Decimal(manifest.cost_usd), sum(manifest.samples.values())
    usage = manifest.usage
    each = f", ${total / kept:.6f} a kept answer" if kept else ""
    return (
        f"${total:f} for {usage.input_tokens} input tokens ({usage.cached_tokens} of them cached), {usage.output_tokens}"
        f" output and {usage.thinking_tokens} thinking tokens{each}. Growing prompts and judging answers is not in it:"
        " `potstill cost report` has all of it."
    )


def _named(languages: Mapping[str, int]) -> dict[str, int]:
    return {LANGUAGE_NAMES[name]: count for name, count in languages.items()}


def _table(heading: str, rows: Mapping[str, int]) -> Iterator[str]:
    if rows:
        yield from (f"| {heading} |", "|---|---|", *(f"| {name} | {count} |" for name, count in rows.items()), "")


def _lengths(rows: Mapping[str, Lengths | None]) -> Iterator[str]:
    known = {name: length for name, length in rows.items() if length is not None}
    if not known:
        return
    yield from ("| characters | mean | median | 95th percentile | longest |", "|---|---|---|---|---|")
    for name, row in known.items():
        yield f"| {name} | {row.mean} | {row.median} | {row.p95} | {row.longest} |"
    yield ""
