"""What `infer` paid for, read back from ledger and traces."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from potstill.config import Config, TeacherConfig, with_values
from potstill.generate.dataset import write_dataset
from potstill.generate.plan import Plan
from potstill.generate.traces import Traced, traced
from potstill.ledger import Intent, Ledger, Settlement
from potstill.prompts import PromptFiles, fill, load_roles, load_template
from potstill.records import Message, Trace, Usage
from potstill.teacher.calls import TeacherRequest, build_request
from potstill.teacher.scripted import reply_200
from potstill.workspace import Workspace

ROLES = load_roles(["hardware-expert", "cost-analyst"], "en")


def user(text: str) -> Message:
    """A question."""
    return Message(role="user", content=text)


def merge_prompt(question: str, language: str = "en") -> str:
    """What the teacher is sent to merge answers."""
    return fill(load_template("merge", language), {"question": question, "candidates": "1. (cost-analyst) Rent it."})


def request(messages: tuple[Message, ...], role: str | None, **extra: Any) -> TeacherRequest:
    """A request as the router makes it."""
    return build_request(TeacherConfig(), messages, temperature=0.0, max_output_tokens=99, role=role, **extra)


async def paid(workspace: Workspace, asked: list[tuple[TeacherRequest, str]], command: str = "infer") -> None:
    """Put answered requests into the ledger."""
    with Ledger.open(workspace.ledger) as ledger:
        for item, text in asked:
            worst = Decimal("0.01")
            text_of_request = json.dumps({"model": item.model, "body": item.body, "sample": item.sample})
            intent = Intent(item.key, command, item.role, item.model, "standard", text_of_request, worst)
            ticket = await ledger.reserve(intent)
            settlement = Settlement(str(reply_200(text).body), Usage(output_tokens=2), Decimal("0.001"), "p", 0.1)
            await ledger.settle(ticket.attempt, settlement)


def trace(query: str, roles: tuple[str, ...]) -> Trace:
    """A query whose answer was merged."""
    return Trace(
        id="t",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        query=query,
        namespace="default",
        route="merged",
        reason="",
        cosine=None,
        mean_logprob=None,
        roles=roles,
        model="m",
        entry_id=None,
        cost_usd=Decimal("0.001"),
        baseline_usd=Decimal("0.001"),
        latency_s=0.1,
    )


async def test_answers_of_the_teachers_own_become_samples(tmp_path: Path) -> None:
    """Plain and merged answers do, in the role that asked or took part; a pick among candidates and other commands no."""
    workspace = Workspace(tmp_path)
    system = Message(role="system", content=ROLES[0].system)
    chosen = request((user(merge_prompt("Pick?")),), None, schema={"type": "object"})
    await paid(
        workspace,
        [
            (request((system, user("How hot?")), "hardware-expert"), "Eighty degrees."),
            (request((user(merge_prompt("Rent or buy?")),), None), "Rent first."),
            (request((user(merge_prompt("要租還是要買？", "zh-TW")),), None), "先租。"),
            (chosen, '{"best": 1}'),
        ],
    )
    await paid(workspace, [(request((user("not for infer"),), "judge"), "no")], command="judge")
    workspace.traces.mkdir()
    lines = trace("Rent or buy?", ("somebody", "cost-analyst")).to_line() + '{"torn": '
    (workspace.traces / "2026-01-01.jsonl").write_text(lines)
    with closing(Traced(workspace, ROLES)) as found:
        samples = list(found)
        assert list(found) == samples, "they can be gone through again"
    assert [(row.role, row.messages[-2].content, row.messages[-1].content) for row in samples] == [
        ("hardware-expert", "How hot?", "Eighty degrees."),
        ("cost-analyst", "Rent or buy?", "Rent first."),
        ("hardware-expert", "要租還是要買？", "先租。"),
    ]
    assert samples[1].messages[0].content == ROLES[1].system
    assert {row.cost_usd for row in samples} == {Decimal("0.001")}


async def test_chats_keep_their_history_and_the_split_knows_the_question(tmp_path: Path) -> None:
    """A chat comes with its earlier turns; traced samples stand in the dataset once, beside an empty plan."""
    workspace = Workspace(tmp_path)
    turns = (user("How hot?"), Message(role="assistant", content="Eighty."), user("And at night?"))
    await paid(workspace, [(request(turns, "hardware-expert"), "The same.")])
    plan = Plan(with_values(Config(), generate={"from_traces": True}), PromptFiles([], may_be_none=True), ROLES)
    with traced(plan, workspace, pytest.fail) as extra:
        assert extra.questions == 1
        samples = list(extra.samples)
        contents = [message.content for message in samples[0].messages]
        assert contents == ["How hot?", "Eighty.", "And at night?", "The same."]
        manifest = write_dataset(workspace, plan, samples, extra=extra)
        assert sum(manifest.samples.values()) == 1
        assert write_dataset(workspace, plan, [], extra=extra).missing == 0


async def test_traces_of_another_version_are_counted_and_said(tmp_path: Path) -> None:
    """Their answers are samples all the same; a torn line is no such trace, and where all are read nothing is said."""
    workspace = Workspace(tmp_path)
    await paid(workspace, [(request((user(merge_prompt("Rent or buy?")),), None), "Rent first.")])
    workspace.traces.mkdir()
    newer = json.loads(trace("Rent or buy?", ("cost-analyst",)).to_line()) | {"schema_version": 2}
    (workspace.traces / "2026-01-01.jsonl").write_text(json.dumps(newer) + '\n{"torn": ')
    plan = Plan(with_values(Config(), generate={"from_traces": True}), PromptFiles([], may_be_none=True), ROLES)
    said: list[str] = []
    with traced(plan, workspace, said.append) as extra:
        assert [sample.role for sample in extra.samples] == ["hardware-expert"]
    assert len(said) == 1
    assert said[0].startswith("1 trace of another version not read")
    (workspace.traces / "2026-01-01.jsonl").unlink()
    with traced(plan, workspace, pytest.fail):
        pass


async def test_samples_of_one_question_stand_in_a_row(tmp_path: Path) -> None:
    """Whatever was asked between them: they are numbered in order, so that near-duplicates and the best are found."""
    workspace = Workspace(tmp_path)
    asked = (("hot", 0), ("dear", 0), ("hot", 1))
    turns = [request((user(f"How {word}?"),), "cost-analyst", sample=sample) for word, sample in asked]
    await paid(workspace, list(zip(turns, "abc", strict=True)))
    with closing(Traced(workspace, ROLES)) as found:
        assert [(row.messages[-1].content, row.sample) for row in found] == [("a", 0), ("c", 1), ("b", 0)]


def test_a_workspace_without_traces_has_none(tmp_path: Path) -> None:
    """Neither ledger nor traces: no samples, and no error."""
    with closing(Traced(Workspace(tmp_path), ROLES)) as found:
        assert list(found) == []
