"""The router's ways, with a scripted teacher and a scripted student: which one answers, why, and what is stored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.routing import PARAPHRASE, QUESTION, PricedTeacher, RoleStudent, config, failing, routing, text_of, verdict

from potstill.config import Config, Secrets, with_values
from potstill.errors import (
    BudgetError,
    InputError,
    KeyRefusedError,
    MachineError,
    QuotaError,
    TeacherError,
    UsageError,
)
from potstill.files import write_atomic
from potstill.infer.batch import answer_all, beside_gemini, summarise
from potstill.infer.cache import open_cache
from potstill.infer.panel import LazyStudent, Panel, read_verdict
from potstill.infer.router import open_router
from potstill.records import Message, Trace
from potstill.student.answers import Student, StudentAnswer, StudentQuery
from potstill.teacher.calls import TeacherRequest
from potstill.workspace import Workspace


async def test_miss_is_stored_then_hit_exactly_then_by_meaning(tmp_path: Path) -> None:
    """Gemini merges once; the same question is an exact hit, a paraphrase a semantic one, both for nothing."""
    teacher, student = PricedTeacher(lambda _: "merged"), RoleStudent()
    async with routing(tmp_path, teacher, student) as router:
        first = await router.answer(QUESTION)
        again = await router.answer(f"  {QUESTION.rstrip('?')} ")
        near = await router.answer(PARAPHRASE)
    assert [found.trace.route for found in (first, again, near)] == ["merged", "exact", "semantic"]
    assert {found.text for found in (first, again, near)} == {"merged"}
    assert [found.trace.cost_usd for found in (first, again, near)] == [Decimal("0.01"), 0, 0]
    assert first.trace.entry_id == again.trace.entry_id == near.trace.entry_id
    assert near.trace.cosine is not None
    assert near.trace.cosine > 0.85
    assert student.batches == [2]
    assert first.trace.roles == ("hardware-expert", "cost-analyst")


async def test_merge_shows_question_and_all_candidates(tmp_path: Path) -> None:
    """What Gemini is asked holds the question and every role's answer, as data."""
    teacher = PricedTeacher(lambda _: "merged")
    student = RoleStudent(lambda query: f"{{{{ {query.role} }}}} <b>")
    async with routing(tmp_path, teacher, student) as router:
        await router.answer("What is {{ candidates }}?")
    asked = text_of(teacher.requests[0])
    assert "What is {{ candidates }}?" in asked
    assert "1. (hardware-expert) {{ hardware-expert }} <b>\n2. (cost-analyst)" in asked


async def test_trace_stands_on_disk(tmp_path: Path) -> None:
    """Each query leaves one line that reads back as the trace that was returned."""
    async with routing(tmp_path, PricedTeacher(lambda _: "yes")) as router:
        answers = [await router.answer(QUESTION), await router.answer(QUESTION)]
    (file,) = (tmp_path / "traces").glob("*.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [Trace.model_validate_json(line) for line in lines] == [answer.trace for answer in answers]


async def test_answer_is_given_although_its_trace_cannot_be_written(tmp_path: Path) -> None:
    """What was paid for is not lost where the folder of traces cannot be used; the trace itself says so."""
    Workspace(tmp_path).traces.write_text("in the way", encoding="utf-8")
    async with routing(tmp_path, PricedTeacher(lambda _: "Gemini says so")) as router:
        answer = await router.answer(QUESTION)
    assert answer.text == "Gemini says so"
    assert "trace not written" in answer.trace.reason


async def test_an_empty_merge_is_not_told(tmp_path: Path) -> None:
    """Where Gemini merges to blanks and then answers alone, a stream holds the answer, and nothing before it."""
    replies = iter((" \n", "The answer."))
    said: list[str] = []
    async with routing(tmp_path, PricedTeacher(lambda _: next(replies)), RoleStudent()) as router:
        answer = await router.answer(QUESTION, tell=said.append)
    assert "an empty merge" in answer.trace.reason
    assert "".join(said) == answer.text == "The answer."


async def test_without_student_gemini_answers_in_the_first_role(tmp_path: Path) -> None:
    """No student: the cache, then Gemini with the first role's system prompt, and that is the baseline too."""
    teacher = PricedTeacher(lambda _: "plain")
    async with routing(tmp_path, teacher) as router:
        answer = await router.answer(QUESTION)
    assert answer.trace.route == "teacher"
    assert answer.trace.cost_usd == answer.trace.baseline_usd == Decimal("0.01")
    assert "hardware" in teacher.requests[0].body["systemInstruction"]["parts"][0]["text"]
    assert teacher.requests[0].body["generationConfig"]["temperature"] == 0


async def test_select_serves_the_picked_candidate(tmp_path: Path) -> None:
    """Gemini gives a number, the student's text is served."""
    teacher = PricedTeacher(lambda _: '{"best": 2}')
    async with routing(tmp_path, teacher, RoleStudent(), config(decision="select")) as router:
        answer = await router.answer(QUESTION)
    assert (answer.text, answer.trace.route) == ("cost-analyst says so", "merged")
    assert "responseJsonSchema" in teacher.requests[0].body["generationConfig"]


async def test_rejected_candidate_makes_gemini_answer_alone(tmp_path: Path) -> None:
    """Verify says no, a second call answers, and the trace carries both costs and the reason."""

    def script(request: TeacherRequest) -> str:
        return '{"fits": false}' if "responseJsonSchema" in request.body["generationConfig"] else "better"

    teacher = PricedTeacher(script)
    async with routing(tmp_path, teacher, RoleStudent(), config(decision="verify")) as router:
        answer = await router.answer(QUESTION)
    assert (answer.text, answer.trace.route, answer.trace.cost_usd) == ("better", "teacher", Decimal("0.02"))
    assert answer.trace.baseline_usd == Decimal("0.01")
    assert "does not fit" in answer.trace.reason


async def test_never_needs_no_teacher(tmp_path: Path) -> None:
    """Decide never: the best student's answer, stored, and Gemini is not asked."""
    teacher = PricedTeacher(failing(AssertionError("asked")))
    async with routing(tmp_path, teacher, RoleStudent(), config(decide="never")) as router:
        answer = await router.answer(QUESTION)
        again = await router.answer(QUESTION)
    assert (answer.trace.route, again.trace.route) == ("student", "exact")
    assert answer.trace.cost_usd == 0
    assert answer.trace.baseline_usd > 0


async def test_never_without_student_is_told(tmp_path: Path) -> None:
    """Nothing may answer: a usage error, not a silent Gemini call."""
    with pytest.raises(UsageError, match="never"):
        async with routing(tmp_path, PricedTeacher(lambda _: "x"), None, config(decide="never")) as router:
            await router.answer(QUESTION)


@pytest.mark.parametrize(
    ("threshold", "logprob", "route"),
    [(-0.5, -0.2, "student"), (-0.5, -0.9, "merged"), (None, -0.2, "merged"), (-0.5, None, "merged")],
)
async def test_verdict_sets_when_gemini_is_left_out(
    tmp_path: Path, threshold: float | None, logprob: float | None, route: str
) -> None:
    """Unset, decide follows the verdict: sure enough is served, unsure or uncalibrated goes to Gemini."""
    chosen = config()
    write_atomic(Workspace(tmp_path).student(chosen.distill.name).verdict, verdict(threshold).model_dump_json())
    async with routing(tmp_path, PricedTeacher(lambda _: "merged"), RoleStudent(logprob=logprob), chosen) as router:
        answer = await router.answer(QUESTION)
    assert answer.trace.route == route


def test_broken_verdict_names_file_and_field(tmp_path: Path) -> None:
    """A verdict that cannot be read is an input error."""
    files = Workspace(tmp_path).student("demo")
    assert read_verdict(files) is None
    write_atomic(files.verdict, '{"student": 1}')
    with pytest.raises(InputError, match=r"verdict\.json"):
        read_verdict(files)


@pytest.mark.parametrize(
    "error",
    [TeacherError("down", reason="http"), BudgetError("over"), QuotaError("spent")],
    ids=lambda e: type(e).__name__,
)
async def test_teacher_down_serves_the_student_unverified_and_stores_nothing(tmp_path: Path, error: Exception) -> None:
    """An outage is bridged by the best student answer, marked, and not kept for later."""
    async with routing(tmp_path, PricedTeacher(failing(error)), RoleStudent()) as router:
        answer = await router.answer(QUESTION)
        again = await router.answer(QUESTION)
    assert answer.trace.route == again.trace.route == "student"
    assert "unverified" in answer.trace.reason
    assert answer.trace.entry_id is None


@pytest.mark.parametrize("error", [TeacherError("down", reason="http"), BudgetError("over"), KeyRefusedError("no key")])
async def test_teacher_down_without_student_is_an_error(tmp_path: Path, error: Exception) -> None:
    """With nobody left to answer, the teacher's own error comes out."""
    with pytest.raises(type(error)):
        async with routing(tmp_path, PricedTeacher(failing(error))) as router:
            await router.answer(QUESTION)


async def test_missing_key_is_told_although_a_student_could_answer(tmp_path: Path) -> None:
    """A key that is missing is a mistake of the setup, not an outage to be bridged."""
    student = RoleStudent()
    with pytest.raises(KeyRefusedError):
        async with open_router(config(), Secrets(), Workspace(tmp_path), student) as router:
            await router.answer(QUESTION)
    assert student.batches == []


async def test_hits_and_never_need_no_key(tmp_path: Path) -> None:
    """The real router opens no teacher where none is needed."""
    async with open_router(config(decide="never"), Secrets(), Workspace(tmp_path), RoleStudent()) as router:
        assert (await router.answer(QUESTION)).trace.route == "student"
        assert (await router.answer(QUESTION)).trace.route == "exact"


async def test_student_down_goes_to_gemini(tmp_path: Path) -> None:
    """A student that fails is passed over, and the trace says so."""

    def script(_: StudentQuery) -> str:
        message = "out of memory"
        raise MachineError(message)

    async with routing(tmp_path, PricedTeacher(lambda _: "plain"), RoleStudent(script)) as router:
        answer = await router.answer(QUESTION)
    assert answer.trace.route == "teacher"
    assert "student failed: out of memory" in answer.trace.reason


async def test_student_down_with_never_is_an_error(tmp_path: Path) -> None:
    """Where Gemini may not be asked, the student's error comes out."""

    def script(_: StudentQuery) -> str:
        message = "out of memory"
        raise MachineError(message)

    with pytest.raises(MachineError):
        async with routing(
            tmp_path, PricedTeacher(lambda _: "x"), RoleStudent(script), config(decide="never")
        ) as router:
            await router.answer(QUESTION)


async def test_cut_answer_is_served_and_not_stored(tmp_path: Path) -> None:
    """An answer that hit the token limit helps this asker; the next one is not given it."""
    async with routing(tmp_path, PricedTeacher(lambda _: "half an", finish_reason="MAX_TOKENS")) as router:
        answer = await router.answer(QUESTION)
    assert answer.text == "half an"
    assert answer.trace.entry_id is None
    assert "MAX_TOKENS" in answer.trace.reason


async def test_cut_merge_is_not_stored(tmp_path: Path) -> None:
    """A merge that hit the token limit is served once and not kept either."""
    teacher = PricedTeacher(lambda _: "half a", finish_reason="MAX_TOKENS")
    async with routing(tmp_path, teacher, RoleStudent()) as router:
        trace = (await router.answer(QUESTION)).trace
    assert (trace.route, trace.entry_id) == ("merged", None)


async def test_no_hit_across_versions_of_a_student(tmp_path: Path) -> None:
    """A student's answer dies with that student: another fingerprint is another scope."""
    trained_again = RoleStudent(lambda _: "better")
    trained_again.fingerprint = "student-2"
    chosen, teacher = config(decide="never"), PricedTeacher(lambda _: "x")
    for student, route in ((RoleStudent(), "student"), (trained_again, "student"), (RoleStudent(), "exact")):
        async with routing(tmp_path, teacher, student, chosen) as router:
            assert (await router.answer(QUESTION)).trace.route == route


async def test_student_that_loses_an_answer_is_told(tmp_path: Path) -> None:
    """Fewer answers than queries is an error of the student, not an endless wait."""

    class Forgetful(RoleStudent):
        def answer(self, queries: Sequence[StudentQuery]) -> list[StudentAnswer]:
            """Lose the last one."""
            return super().answer(queries)[:-1]

    async with routing(tmp_path, PricedTeacher(lambda _: "plain"), Forgetful()) as router:
        answer = await router.answer(QUESTION)
    assert "gave 1 answers to 2 queries" in answer.trace.reason


async def test_empty_reply_is_an_error(tmp_path: Path) -> None:
    """A blocked answer without text is no answer."""
    with pytest.raises(TeacherError, match="SAFETY"):
        async with routing(tmp_path, PricedTeacher(lambda _: " ", finish_reason="SAFETY")) as router:
            await router.answer(QUESTION)


async def test_uncacheable_question_is_asked_every_time(tmp_path: Path) -> None:
    """What depends on the moment is neither stored nor taken from the ledger: each asking is its own request."""
    teacher = PricedTeacher(lambda _: "rain")
    async with routing(tmp_path, teacher) as router:
        first = await router.answer("What is the weather today?")
        second = await router.answer("What is the weather today?")
    assert (first.trace.route, second.trace.route) == ("teacher", "teacher")
    assert "not cacheable (time" in first.trace.reason
    assert len({request.key for request in teacher.requests}) == 2
    assert second.trace.cost_usd == Decimal("0.01")


async def test_history_is_sent_and_never_cached(tmp_path: Path) -> None:
    """A turn with a past goes to student and teacher with that past, and passes the cache by."""
    teacher = PricedTeacher(lambda _: "it depends")
    past = (Message(role="user", content="What is LoRA?"), Message(role="assistant", content="An adapter."))
    async with routing(tmp_path, teacher) as router:
        await router.answer(QUESTION)
        answer = await router.answer(QUESTION, history=past)
    assert answer.trace.route == "teacher"
    assert [turn["role"] for turn in teacher.requests[-1].body["contents"]] == ["user", "model", "user"]


async def test_forgotten_answer_is_paid_for_anew(tmp_path: Path) -> None:
    """After `forget` the ledger's old answer is not served again: the request is another one."""
    teacher = PricedTeacher(lambda _: "yes")
    async with routing(tmp_path, teacher) as router:
        first = await router.answer(QUESTION)
    workspace = Workspace(tmp_path)
    cache = open_cache(config().cache, workspace)
    assert cache.store.forget(str(first.trace.entry_id))
    cache.close()
    async with routing(tmp_path, teacher) as router:
        second = await router.answer(QUESTION)
    assert (second.trace.route, second.trace.cost_usd) == ("teacher", Decimal("0.01"))


async def test_answer_that_is_asked_anew_is_new(tmp_path: Path) -> None:
    """With `read_cache=False` Gemini answers once more, not the ledger for it; what it says takes the old answer's place."""
    said = iter(["old", "new"])
    async with routing(tmp_path, PricedTeacher(lambda _: next(said))) as router:
        await router.answer(QUESTION)
        anew = await router.answer(QUESTION, read_cache=False)
        hit = await router.answer(QUESTION)
    assert (anew.text, anew.trace.cost_usd) == ("new", Decimal("0.01"))
    assert (hit.text, hit.trace.route) == ("new", "exact")


async def test_answer_that_grew_old_in_a_running_server_is_asked_anew(tmp_path: Path) -> None:
    """Past `cache.ttl_s` the ledger does not give the old answer back for nothing, as if it were young again."""
    chosen = with_values(config(), cache={"ttl_s": 1})
    async with routing(tmp_path, PricedTeacher(lambda _: "yes"), chosen=chosen) as router:
        await router.answer(QUESTION)
        await asyncio.sleep(1.05)
        later = await router.answer(QUESTION)
    assert (later.trace.route, later.trace.cost_usd) == ("teacher", Decimal("0.01"))


async def test_answer_from_the_ledger_costs_nothing(tmp_path: Path) -> None:
    """An answer that was paid for before a crash, and is not in the cache, is free."""
    teacher = PricedTeacher(lambda _: "yes")
    async with routing(tmp_path / "one", teacher) as router:
        await router.answer(QUESTION)
    async with routing(tmp_path / "two", teacher) as router:
        answer = await router.answer(QUESTION)
    assert (answer.trace.route, answer.trace.cost_usd) == ("teacher", 0)


async def test_equal_questions_at_once_pay_once(tmp_path: Path) -> None:
    """Ten askers at the same moment: one call, nine hits."""
    teacher = PricedTeacher(lambda _: "yes")
    async with routing(tmp_path, teacher) as router:
        answers = await asyncio.gather(*(router.answer(QUESTION) for _ in range(10)))
    assert len(teacher.requests) == 1
    assert sorted(answer.trace.route for answer in answers) == ["exact"] * 9 + ["teacher"]


CHANGES: dict[str, dict[str, Any]] = {
    "language": {"language": "zh-TW"},
    "model": {"teacher": {"model": "gemini-2.5-flash-lite"}},
    "thinking": {"teacher": {"thinking_budget": 512}},
    "server": {"teacher": {"base_url": "http://127.0.0.1:1"}},
    "tokens": {"generate": {"max_output_tokens": 64}},
    "roles": {"generate": {"roles": ("cost-analyst",)}},
    "decision": {"infer": {"decision": "verify"}},
    "decide": {"infer": {"decide": "uncertain"}},
    "namespace": {"cache": {"namespace": "tenant-2"}},
    "student": {},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_no_hit_across_what_changes_an_answer(tmp_path: Path, change: str) -> None:
    """Neither the exact nor the semantic layer serves an answer that was made under another setting."""
    teacher = PricedTeacher(lambda _: "yes")
    async with routing(tmp_path, teacher) as router:
        await router.answer(QUESTION)
    values = CHANGES[change]
    data = {**config().model_dump(), **{key: value for key, value in values.items() if not isinstance(value, dict)}}
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    chosen = with_values(Config.model_validate(data), **sections)
    student = RoleStudent() if change == "student" else None
    async with routing(tmp_path, teacher, student, chosen) as router:
        answers = [await router.answer(QUESTION), await router.answer(PARAPHRASE)]
    assert answers[0].trace.route not in {"exact", "semantic"}
    if answers[1].trace.route == "semantic":
        assert answers[1].trace.entry_id == answers[0].trace.entry_id


async def test_namespace_of_a_call_is_a_tenant(tmp_path: Path) -> None:
    """A namespace given with the question keeps tenants apart."""
    async with routing(tmp_path, PricedTeacher(lambda _: "yes")) as router:
        await router.answer(QUESTION, namespace="a")
        other = await router.answer(QUESTION, namespace="b")
        same = await router.answer(QUESTION, namespace="a")
    assert (other.trace.route, same.trace.route) == ("teacher", "exact")
    assert other.trace.cost_usd == Decimal("0.01"), "what the ledger gave for nothing would tell b what a has asked"
    assert (other.trace.namespace, same.trace.namespace) == ("b", "a")


async def test_changed_number_is_no_semantic_hit(tmp_path: Path) -> None:
    """The guard stands behind the cosine: near, but another number."""
    async with routing(tmp_path, PricedTeacher(lambda _: "yes")) as router:
        await router.answer("Is a card with 8 GB of memory enough for a small model?")
        answer = await router.answer("Is a card with 6 GB of memory enough for a small model?")
    assert answer.trace.route == "teacher"
    assert "numbers differ" in answer.trace.reason


async def test_two_routers_on_one_workspace(tmp_path: Path) -> None:
    """While one holds the embedded index, another reads and writes the same cache through a copy in memory."""
    teacher = PricedTeacher(lambda _: "yes")
    async with routing(tmp_path, teacher) as one, routing(tmp_path, teacher) as two:
        await one.answer(QUESTION)
        assert (await two.answer(QUESTION)).trace.route == "exact"
        assert (await two.answer(PARAPHRASE)).trace.route == "semantic"
        await two.answer("What does four bit quantization do?")
        assert (await one.answer("What does four-bit quantization do?")).trace.route == "semantic"


@pytest.mark.parametrize("question", [" \n", "what is a\udcff?"])
async def test_what_is_no_question_is_refused(tmp_path: Path, question: str) -> None:
    """Nothing to ask is a usage error, and so is what no file could hold: a terminal's bytes that are not UTF-8."""
    with pytest.raises(UsageError):
        async with routing(tmp_path, PricedTeacher(lambda _: "x")) as router:
            await router.answer(question)


async def test_unknown_role_is_refused(tmp_path: Path) -> None:
    """A role that the student was not trained on is named before anything is asked."""
    with pytest.raises(UsageError, match="generalist"):
        async with routing(tmp_path, PricedTeacher(lambda _: "x"), RoleStudent(), config(roles=("generalist",))):
            pass


async def test_chosen_roles_answer(tmp_path: Path) -> None:
    """infer.roles picks among the student's roles."""
    student = RoleStudent()
    chosen = config(roles=("cost-analyst",), decide="never")
    async with routing(tmp_path, PricedTeacher(lambda _: "x"), student, chosen) as router:
        answer = await router.answer(QUESTION)
    assert (answer.text, student.batches) == ("cost-analyst says so", [1])


async def test_questions_that_wait_share_a_batch() -> None:
    """While the student works, new questions gather, and are answered together."""
    begun, go = threading.Event(), threading.Event()

    def script(query: StudentQuery) -> str:
        begun.set()
        go.wait(10)
        return f"{query.role}: {query.messages[-1].content}"

    student = RoleStudent(script)
    panel = Panel(student, student.roles, 8)
    first = asyncio.create_task(panel.ask([Message(role="user", content="0")]))
    await asyncio.to_thread(begun.wait, 10)
    others = [asyncio.create_task(panel.ask([Message(role="user", content=str(place))])) for place in (1, 2, 3)]
    await asyncio.sleep(0)
    go.set()
    answers = await asyncio.gather(first, *others)
    assert student.batches == [2, 6]
    assert [found[1].text for found in answers] == [f"cost-analyst: {place}" for place in range(4)]


async def test_cancelled_asker_takes_nothing_from_the_others() -> None:
    """A question that is given up leaves its batch alone."""
    go = threading.Event()

    def script(query: StudentQuery) -> str:
        go.wait(10)
        return query.messages[-1].content

    student = RoleStudent(script)
    panel = Panel(student, student.roles, 8)
    first = asyncio.create_task(panel.ask([Message(role="user", content="a")]))
    second = asyncio.create_task(panel.ask([Message(role="user", content="b")]))
    await asyncio.sleep(0.05)
    first.cancel()
    go.set()
    assert [answer.text for answer in await second] == ["b", "b"]


def test_lazy_student_is_loaded_when_first_asked() -> None:
    """Name, roles and fingerprint need no weights; asking loads once; a role it lacks is told, and another in its place."""
    loads: list[int] = []

    def load() -> Student:
        loads.append(1)
        return RoleStudent()

    query = StudentQuery(role="cost-analyst", messages=(Message(role="user", content="x"),), max_new_tokens=4)
    known = RoleStudent().fingerprint
    lazy = LazyStudent("demo", ("cost-analyst",), known, load)
    assert (lazy.fingerprint, loads) == (known, [])
    lazy.answer([query])
    assert [piece.text for piece in lazy.stream([query])] == ["cost-analyst says so"]
    assert loads == [1]
    with pytest.raises(MachineError, match="poet"):
        LazyStudent("demo", ("poet",), known, load).answer([query])
    with pytest.raises(MachineError, match="trained anew"):
        LazyStudent("demo", ("cost-analyst",), "its predecessor's", load).answer([query])


async def test_batch_lists_failures_and_goes_on(tmp_path: Path) -> None:
    """A question that fails for itself is listed; the others are answered, in order."""

    def script(request: TeacherRequest) -> str:
        if "bad" in text_of(request):
            message = "blocked"
            raise TeacherError(message, reason="SAFETY")
        return text_of(request)

    questions = ["What is LoRA?", "Is this bad?", "How fast is a GPU?", "What is LoRA?"]
    async with routing(tmp_path, PricedTeacher(script)) as router:
        result = await answer_all(router, questions, 2)
    assert list(result.answers) == [0, 2, 3]
    assert [(failure.place, failure.message) for failure in result.failures] == [(1, "blocked")]
    assert result.stopped is None
    summary = summarise([answer.trace for answer in result.answers.values()], len(result.failures))
    assert (summary.questions, summary.failed, summary.routes["exact"]) == (4, 1, 1)
    assert summary.hit_rate == pytest.approx(1 / 3)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_batch_stops_where_no_further_question_can_be_answered(tmp_path: Path, concurrency: int) -> None:
    """A spent budget ends the batch: what was answered is kept, what is under way ends, the rest is not tried."""
    calls: list[int] = []

    def script(_: TeacherRequest) -> str:
        calls.append(1)
        if len(calls) > 2:
            message = "over"
            raise BudgetError(message)
        return "yes"

    async with routing(tmp_path, PricedTeacher(script)) as router:
        result = await answer_all(router, [f"What is the number {place}?" for place in range(20)], concurrency)
    assert len(result.answers) == 2
    assert isinstance(result.stopped, BudgetError)
    assert len(calls) <= 2 + concurrency


async def test_nothing_is_begun_after_a_stop() -> None:
    """Also questions that could have been answered are left, once one has met the end of the budget."""
    begun: list[str] = []

    class Ending:
        async def answer(self, question: str) -> Any:
            """Refuse the first question, answer the others."""
            begun.append(question)
            await asyncio.sleep(0)
            if question == "0":
                message = "over"
                raise BudgetError(message)
            message = "unreadable"
            raise InputError(message)

    result = await answer_all(Ending(), [str(place) for place in range(50)], 2)
    assert isinstance(result.stopped, BudgetError)
    assert len(begun) < 6


async def test_bug_in_a_batch_is_not_swallowed() -> None:
    """What is no expected failure comes out."""

    class Broken:
        async def answer(self, question: str) -> Any:
            """Break."""
            raise ZeroDivisionError(question)

    with pytest.raises(ExceptionGroup):
        await answer_all(Broken(), ["a"], 4)


@pytest.mark.parametrize(
    ("cost", "baseline", "words"),
    [("0", "0.02", "100% saved"), ("0.03", "0.02", "50% DEARER"), ("0.02", "0.02", "about $0.02"), ("0", "0", "$0")],
)
def test_cost_is_said_beside_gemini_alone(cost: str, baseline: str, words: str) -> None:
    """Saved or dearer, with the share, and dearer in capitals."""
    assert words in beside_gemini(Decimal(cost), Decimal(baseline))


async def test_merged_route_says_that_it_is_dearer(tmp_path: Path) -> None:
    """The baseline of a merge is an estimate of a plain call, so a dear merge shows as dearer."""
    async with routing(tmp_path, PricedTeacher(lambda _: "yes"), RoleStudent()) as router:
        trace = (await router.answer(QUESTION)).trace
    assert 0 < trace.baseline_usd < trace.cost_usd
    assert "DEARER" in beside_gemini(trace.cost_usd, trace.baseline_usd)
