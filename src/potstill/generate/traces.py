"""What `infer` paid the teacher for, as samples: the next round's data, at no further cost.

The ledger has every question that went to the teacher with its raw answer; the traces say for which of the student's
roles a merged answer was made. A reply that only picks or checks a student's answer has no text of the teacher's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from pydantic import ValidationError

from potstill.files import read_lines
from potstill.generate.dataset import Extra
from potstill.generate.plan import Plan
from potstill.generate.shelf import temporary_database
from potstill.ledger import Answered, LedgerView
from potstill.prompts import Prompt, Role, load_template
from potstill.records import Message, Sample, Trace, content_id, is_torn, text_sha
from potstill.teacher.wire import parse_reply
from potstill.wording import counted
from potstill.workspace import Workspace

LANGUAGES = ("en", "zh-TW")
QUESTION, CANDIDATES = "{{ question }}", "{{ candidates }}"


@contextmanager
def traced(plan: Plan, workspace: Workspace, say: Callable[[str], None] = lambda _: None) -> Iterator[Extra]:
    """What `infer` paid for, where the config asks for it; `say` hears of traces that could not be read."""
    if not plan.config.generate.from_traces:
        yield Extra()
        return
    with closing(Traced(workspace, plan.roles)) as found:
        if found.unread:
            traces = counted(found.unread, "trace")
            say(f"{traces} of another version not read: merged answers that only they name go to {plan.roles[0].name}")
        yield Extra(found, found.__contains__, found.questions())


class Traced:
    """Samples of all answers that `infer` paid for, those of one question in one role in a row, oldest first.

    A merged answer goes to the role that its trace names, where it is one of `roles`, else to the first of them;
    `unread` traces are of a form that this version does not know. The samples stand in a temporary database: any number
    of them, in flat memory. Close it when done.
    """

    def __init__(self, workspace: Workspace, roles: Sequence[Role]) -> None:
        """Read the ledger and the traces of a workspace."""
        self.unread = 0
        self._database = temporary_database()
        self._database.execute("CREATE TABLE merged (question TEXT PRIMARY KEY, roles TEXT) WITHOUT ROWID")
        self._database.execute("CREATE TABLE chats (name TEXT PRIMARY KEY, first INTEGER) WITHOUT ROWID")
        self._database.execute("CREATE TABLE samples (number INTEGER PRIMARY KEY, id TEXT, first INTEGER, line TEXT)")
        self._database.execute("CREATE INDEX by_id ON samples (id)")
        self._database.execute("CREATE INDEX by_chat ON samples (first, number)")
        self._read_merged(workspace)
        with LedgerView(workspace.ledger) as ledger:
            for number, answered in enumerate(ledger.answered("infer")):
                sample = self._sample(answered, roles)
                if sample is not None:
                    self._add(number, sample)

    def __iter__(self) -> Iterator[Sample]:
        """Go through them, as often as is wanted."""
        first, place = None, 0
        for now, line in self._database.execute("SELECT first, line FROM samples ORDER BY first, number"):
            first, place = now, place + 1 if now == first else 0
            yield Sample.model_validate_json(line).model_copy(update={"sample": place})

    def __contains__(self, id_: object) -> bool:
        """Whether a sample with this id is among them."""
        return self._database.execute("SELECT 1 FROM samples WHERE id = ?", (id_,)).fetchone() is not None

    def questions(self) -> int:
        """How many different questions were answered."""
        query = "SELECT count(DISTINCT json_extract(name, '$[0]')) FROM chats"
        (count,) = self._database.execute(query).fetchone()
        return int(count)

    def close(self) -> None:
        """Let go of the temporary file."""
        self._database.close()

    def _read_merged(self, workspace: Workspace) -> None:
        """The student's roles that took part in each merged answer, by question."""
        traces = self._traces(workspace)
        rows = ((trace.query, json.dumps(trace.roles)) for trace in traces if trace.route == "merged")
        self._database.executemany("INSERT OR REPLACE INTO merged VALUES (?, ?)", rows)

    def _traces(self, workspace: Workspace) -> Iterator[Trace]:
        """All traces, the oldest first. A line that a crash left torn is passed over, one of another version counted."""
        for path in sorted(workspace.traces.glob("*.jsonl")) if workspace.traces.is_dir() else ():
            for line in read_lines(path, "trace file"):
                try:
                    yield Trace.model_validate_json(line)
                except ValidationError as error:
                    self.unread += not is_torn(error)

    def _sample(self, answered: Answered, roles: Sequence[Role]) -> Sample | None:
        chat = _chat(answered)
        if chat is None:
            return None
        if answered.role is not None:
            return _sample(answered, chat, answered.role)
        role = self._merged_role(chat[-1].content, roles)
        return _sample(answered, (Message(role="system", content=role.system), *chat), role.name)

    def _merged_role(self, question: str, roles: Sequence[Role]) -> Role:
        row = self._database.execute("SELECT roles FROM merged WHERE question = ?", (question,)).fetchone()
        known = {role.name: role for role in roles}
        return next((known[name] for name in json.loads(row[0] if row else "[]") if name in known), roles[0])

    def _add(self, number: int, sample: Sample) -> None:
        chat = json.dumps([sample.prompt_id, sample.role])
        self._database.execute("INSERT OR IGNORE INTO chats VALUES (?, ?)", (chat, number))
        (first,) = self._database.execute("SELECT first FROM chats WHERE name = ?", (chat,)).fetchone()
        row = (number, sample.id, first, sample.to_line())
        self._database.execute("INSERT INTO samples VALUES (?, ?, ?, ?)", row)


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


def _text(content: dict[str, Any]) -> str:
    return "".join(str(part.get("text", "")) for part in content.get("parts", []))
