"""What `infer` paid the teacher for, as samples: the next round's data, at no further cost.

The ledger has every question that went to the teacher with its raw answer; the traces say for which of the student's
roles a merged answer was made. A reply that only picks or checks a student's answer has no text of the teacher's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from potstill.ledger import Answered, LedgerView
from potstill.prompts import Prompt, Role, load_template
from potstill.records import Message, Sample, Trace, content_id, text_sha
from potstill.teacher.wire import parse_reply
from potstill.workspace import Workspace, read_lines

LANGUAGES = ("en", "zh-TW")
QUESTION, CANDIDATES = "{{ question }}", "{{ candidates }}"


def traced_samples(workspace: Workspace, roles: Sequence[Role]) -> tuple[Sample, ...]:
    """Samples of all answers that `infer` paid for, those of one question in one role in a row, oldest first.

    A merged answer goes to the role that its trace names, where it is one of `roles`, else to the first of them.
    """
    merged = _merged_roles(workspace)
    known = {role.name: role for role in roles}
    found: dict[tuple[str, str], list[Sample]] = {}
    with LedgerView(workspace.ledger) as ledger:
        for answered in ledger.answered("infer"):
            chat = _chat(answered)
            if chat is None:
                continue
            if answered.role is None:
                names = [name for name in merged.get(chat[-1].content, ()) if name in known]
                role = known[names[0]] if names else roles[0]
                chat = (Message(role="system", content=role.system), *chat)
            sample = _sample(answered, chat, answered.role or role.name)
            if sample is not None:
                found.setdefault((sample.prompt_id, sample.role), []).append(sample)
    return tuple(
        sample.model_copy(update={"sample": number})
        for samples in found.values()
        for number, sample in enumerate(samples)
    )


def _chat(answered: Answered) -> tuple[Message, ...] | None:
    """The chat that was answered, ending in the user's question; None for what is no answer of the teacher's own."""
    body = answered.body
    if "responseJsonSchema" in body.get("generationConfig", {}):
        return None
    names = {"user": "user", "model": "assistant"}
    turns = [
        Message.model_validate({"role": names.get(turn["role"], "user"), "content": _text(turn)})
        for turn in body["contents"]
    ]
    if answered.role is not None:
        system = _text(body.get("systemInstruction", {}))
        return (*([Message(role="system", content=system)] if system else []), *turns)
    question = _merged_question(turns[-1].content)
    return None if question is None else (*turns[:-1], Message(role="user", content=question))


def _merged_question(prompt: str) -> str | None:
    """The question inside a filled merge template; None where it is no such prompt."""
    for language in LANGUAGES:
        before, _, rest = load_template("merge", language).partition(QUESTION)
        between = rest.partition(CANDIDATES)[0]
        if prompt.startswith(before) and between in prompt[len(before) :]:
            return prompt[len(before) :].partition(between)[0].strip()
    return None


def _sample(answered: Answered, chat: tuple[Message, ...], role: str) -> Sample | None:
    reply = parse_reply(answered.reply)
    question = next((turn.content for turn in chat if turn.role == "user"), None)
    if reply is None or question is None:
        return None
    return Sample(
        id=content_id({"key": answered.key}),
        messages=(*chat, Message(role="assistant", content=reply.text.strip())),
        role=role,
        prompt_id=Prompt(text=question, source="traces").id,
        sample=0,
        model=reply.model or answered.model,
        finish_reason=reply.finish_reason,
        usage=reply.usage,
        cost_usd=answered.cost_usd,
        prompt_sha=text_sha(question),
        created_at=answered.answered_at,
    )


def _merged_roles(workspace: Workspace) -> dict[str, tuple[str, ...]]:
    """The student's roles that took part in each merged answer, by question."""
    return {trace.query: trace.roles for trace in read_traces(workspace) if trace.route == "merged"}


def read_traces(workspace: Workspace) -> Iterator[Trace]:
    """All traces, the oldest first. A line that a crash left torn, or of another version, is passed over."""
    for path in sorted(workspace.traces.glob("*.jsonl")) if workspace.traces.is_dir() else ():
        for line in read_lines(path, "trace file"):
            try:
                yield Trace.model_validate_json(line)
            except ValidationError:
                continue


def _text(content: dict[str, Any]) -> str:
    return "".join(str(part.get("text", "")) for part in content.get("parts", []))
