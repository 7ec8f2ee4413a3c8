"""On-policy distillation: the student writes some answers itself and the local teacher scores them (GKD, arXiv 2306.13649).

A student that only ever reads the teacher's text never learns what to do after a mistake of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from potstill.config import DistillConfig, StudentConfig
from potstill.distill.attention import NAME
from potstill.distill.oom import is_out_of_memory
from potstill.distill.packing import UNLEARNED, Document
from potstill.student.answers import StudentQuery
from potstill.student.base import load_tokenizer
from potstill.student.decoding import Row, Voice
from potstill.student.local import open_engine
from potstill.student.lora import AdapterBank
from potstill.student.slot_memory import Prefixes
from potstill.student.template import stop_ids

Refresh = Callable[[Sequence[Document]], Sequence[Document]]
"""A step's documents -> the documents that are trained on."""
SEEDS = 2**62


def student_writes(student: StudentConfig, distill: DistillConfig) -> Callable[[Any], Refresh]:
    """Given the PEFT model: each document keeps its prompt, and with probability `on_policy` gets a new answer.

    Answers are drawn at temperature 1 from the student as it stands, by its serving engine. All chance comes from torch's
    random numbers, which checkpoints hold, so that a resumed run goes on with the same answers. Where memory runs out,
    the step's documents stay as they are.
    """
    tokenizer = load_tokenizer(student)
    voice, soft = Voice(tokenizer, stop_ids(tokenizer)), distill.soft_targets

    def row(document: Document) -> Row:
        prompt = list(document.ids[: answer_start(document)])
        limit = max(1, min(soft.max_new_tokens, distill.max_length - len(prompt)))
        return Row(StudentQuery(role="", max_new_tokens=limit, temperature=1.0, seed=_seed()), prompt, voice)

    def make(model: Any) -> Refresh:
        def refresh(documents: Sequence[Document]) -> Sequence[Document]:
            chosen = _chosen(len(documents), soft.on_policy)
            rows = {place: row(document) for place, document in enumerate(documents) if chosen[place]}
            if not rows or not _write(model, tokenizer.pad_token_id, list(rows.values())):
                return documents
            return [_said(old, rows[place]) if place in rows else old for place, old in enumerate(documents)]

        return refresh

    return make


def answer_start(document: Document) -> int:
    """Where the last answer begins; what stands before it is the prompt, of at least one token."""
    place = max(place for place, label in enumerate(document.labels) if label != UNLEARNED)
    while place > 1 and document.labels[place - 1] != UNLEARNED:
        place -= 1
    return place


def _said(document: Document, row: Row) -> Document:
    """The document with what the student said in place of its answer."""
    answer = [*row.ids, *([min(row.voice.stops)] if row.finish_reason == "stop" else [])]
    return Document(
        (*row.prompt, *answer), (*[UNLEARNED] * len(row.prompt), *answer), weight=document.weight, sampled=True
    )


def _write(model: Any, pad: int, rows: Sequence[Row]) -> bool:
    """Let the student answer all rows together; False where memory ran out."""
    import torch

    base = model.get_base_model()
    half = base.dtype != torch.float32
    model.eval()
    base.set_attn_implementation("sdpa")
    try:
        engine = open_engine(base, AdapterBank(base), Prefixes(), pad, len(rows))
        for each in rows:
            engine.add(each)
        with torch.autocast(base.device.type, base.dtype if half else torch.bfloat16, enabled=half):
            while engine.running or engine.waiting:
                engine.step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        base.set_attn_implementation(NAME)
        model.train()
    return True


def _chosen(count: int, share: float) -> list[bool]:
    import torch

    return [draw < share for draw in torch.rand(count).tolist()]


def _seed() -> int:
    import torch

    return int(torch.randint(SEEDS, ()))
