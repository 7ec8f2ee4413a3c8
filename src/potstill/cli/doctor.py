"""`potstill doctor`: what this machine is and can do, and what to do about each finding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from potstill.cli.session import Session, with_session
from potstill.config import KEY_VARIABLES

if TYPE_CHECKING:
    from potstill.config import DistillConfig
    from potstill.student.machine import Machine

GIB = 2**30
MIN_FREE_DISK = 5 * GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `advice` is what to do where it is not `ok`."""

    level: Literal["ok", "note", "problem"]
    subject: str
    found: str
    advice: str = ""


@with_session()
def doctor(session: Session) -> None:
    """Say what this machine can do: which stages run here. And which students fit on its GPU."""
    from potstill.student.machine import inspect_machine

    machine = inspect_machine(session.workspace.root)
    findings = [*_machine_findings(machine), *_teacher_findings(session)]
    students = _students(machine, session.config.distill)
    document = {"machine": asdict(machine), "findings": [asdict(item) for item in findings], "students": students}
    session.show(document, _text(findings, students, machine))


def _machine_findings(machine: Machine) -> list[Finding]:
    memory = f"{machine.memory_bytes / GIB:.1f} GiB" if machine.memory_bytes else "unknown"
    found = [
        Finding("ok", "machine", f"{machine.system}, Python {machine.python}, {machine.cores} cores, memory {memory}"),
        _disk(machine.disk_free_bytes),
        _extra(machine),
    ]
    if machine.gpus:
        for gpu in machine.gpus:
            size = f"{gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB free"
            kind = "bfloat16" if gpu.bf16 else "float16 only"
            found.append(Finding("ok", "GPU", f"{gpu.name}, {size}, {kind}"))
    else:
        advice = "students up to some million parameters train on CPU; for larger ones use a CUDA GPU (see the README)"
        found.append(Finding("note", "GPU", "none that torch can use", advice))
    return found


def _disk(free_bytes: int) -> Finding:
    if free_bytes < MIN_FREE_DISK:
        return Finding("problem", "disk", f"{free_bytes / GIB:.1f} GiB free", "make room, or choose another -w folder")
    return Finding("ok", "disk", f"{free_bytes / GIB:.1f} GiB free")


def _extra(machine: Machine) -> Finding:
    missing = [name for name, found in machine.packages.items() if found is None]
    if missing:
        advice = "pip install 'potstill[local]' for distill, serve-local and infer; generate and cost work without"
        return Finding("note", "packages", f"missing: {', '.join(missing)}", advice)
    return Finding("ok", "packages", ", ".join(f"{name} {found}" for name, found in machine.packages.items()))


def _teacher_findings(session: Session) -> list[Finding]:
    teacher, secrets = session.config.teacher, session.secrets
    where = teacher.base_url or {"gemini": "Gemini", "openai": "OpenAI"}[teacher.provider]
    found = [Finding("ok", "teacher", f"{teacher.model} at {where}, {teacher.rpm or 'no limit of'} requests a minute")]
    if secrets.teacher_key_variable:
        found.append(Finding("ok", "key", f"taken from {secrets.teacher_key_variable}"))
    else:
        name = KEY_VARIABLES[teacher.provider][-1]
        found.append(Finding("note", "key", "none", f"export {name}=... ; estimates and the student need none"))
    folder = Path(session.config.student.base)
    if folder.is_dir():
        found.append(Finding("ok", "student base", f"folder {folder}"))
    return found


def _students(machine: Machine, distill: DistillConfig) -> list[dict[str, Any]]:
    """Known students with the memory that training takes, and the largest workable way on this machine's best GPU."""
    from potstill.student.fit import KNOWN, Recipe, training_memory
    from potstill.student.plan import choose

    free = max((gpu.free_bytes for gpu in machine.gpus), default=0)
    rows = []
    for shape in KNOWN:
        needs = {
            kind: training_memory(shape, Recipe(nf4=kind == "nf4", loss_rows=shape.loss_rows)).need
            for kind in ("nf4", "none")
        }
        fits = [kind for kind, need in needs.items() if need <= free]
        best = choose(shape, free, distill.lora.r, distill.batch_size * distill.max_length)
        rows.append({"base": shape.name, "need_bytes": needs, "fits": fits, "best": best.reason if best else None})
    return rows


def _text(findings: list[Finding], students: list[dict[str, Any]], machine: Machine) -> str:
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    lines = []
    for item in findings:
        lines.append(f"{marks[item.level]}  {item.subject}: {item.found}")
        if item.advice:
            lines.append(f"         -> {item.advice}")
    lines += [
        "",
        "Students, and GiB of GPU memory to train them (LoRA r 16, 1,024 tokens a micro-batch, checkpointing):",
    ]
    lines.append(f"  {'base':36} {'nf4':>6} {'16-bit':>7}  fits here")
    for row in students:
        need = row["need_bytes"]
        fits = ", ".join({"nf4": "nf4", "none": "16-bit"}[kind] for kind in row["fits"]) or (
            "no" if machine.gpus else "-"
        )
        lines.append(f"  {row['base']:36} {need['nf4'] / GIB:6.1f} {need['none'] / GIB:7.1f}  {fits}")
    lines += [f"  largest workable: {row['base']}: {row['best']}" for row in students if row["best"]]
    lines.append("`potstill distill --plan --base NAME --card T4` plans for another base or card.")
    return "\n".join(lines)
