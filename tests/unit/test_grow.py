"""Prompts that grow from prompts and documents: the same ledger grows the same ones, and each says where it is from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill.config import Config, with_values
from potstill.errors import PartialError, TeacherError
from potstill.generate.grow import Growing, Grown, Growth, grow, seeded, write_grown
from potstill.prompts import load_prompts
from potstill.teacher.calls import TeacherRequest
from potstill.teacher.scripted import ScriptedTeacher
from potstill.workspace import Workspace

SEEDS = "How much memory does a model need?\nWhy is my card hot?\nShould I rent a card?\n"
WORDS = ["apples", "bridges", "castles", "dolphins", "engines", "forests", "glaciers", "harbours", "islands", "jungles"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three seeds in a file."""
    (tmp_path / "seeds.txt").write_text(SEEDS)
    generate = {"prompts": (str(tmp_path / "seeds.txt"),), "grow": {"target": 12, "per_request": 3}}
    return with_values(Config(workspace=str(tmp_path)), generate=generate)


def asked(request: TeacherRequest) -> str:
    """The text of a request."""
    return request.body["contents"][0]["parts"][0]["text"]


def questions(*texts: str) -> str:
    """An answer in the form that is asked for."""
    return json.dumps({"questions": texts})


def inventive(request: TeacherRequest) -> str:
    """New questions that hang on the request alone."""
    number = int(request.key.rpartition(":")[2], 16)
    words = [WORDS[number // 10**place % 10] for place in range(9)]
    return questions(*(f"What do {' and '.join(words[place : place + 3])} cost?" for place in (0, 3, 6)))


def with_grow(config: Config, **grow_values: object) -> Config:
    """The config with other values in `generate.grow`."""
    values = {**config.generate.grow.model_dump(), **grow_values}
    return with_values(config, generate={"grow": values})


async def grown_by(config: Config, teacher: ScriptedTeacher) -> tuple[list[Grown], Growth]:
    """What grows from a config's seeds."""
    with seeded(config) as pool:
        await grow(config, teacher, pool)
        return list(pool.grown), pool.growth()


async def test_the_same_ledger_grows_the_same_prompts(config: Config) -> None:
    """Growing twice asks for the same work in the same order, reaches the target, and names parents in the pool."""
    first, second = ScriptedTeacher(inventive), ScriptedTeacher(inventive)
    (one, _), (two, _) = await grown_by(config, first), await grown_by(config, second)
    assert one == two
    assert list(first.asked) == list(second.asked)
    assert len(one) == 12
    assert {grown.method for grown in one} == {"self-instruct", "evolve"}
    assert all(grown.parents and grown.round >= 1 for grown in one)
    other, _ = await grown_by(with_grow(config, seed=7), ScriptedTeacher(inventive))
    assert [grown.key for grown in other] != [grown.key for grown in one]


async def test_copies_and_rubbish_are_left_out_with_a_reason(config: Config) -> None:
    """A near-duplicate of a seed, an empty list, an unreadable answer, a refusal and the wrong language do not grow."""
    answers = iter(
        [
            questions(
                "how much memory does a model need", "I'm sorry, but I cannot help with that.", "顯示卡會很熱嗎？"
            ),
            "not JSON",
            questions(),
            questions("Here is the rewritten question: what is heat?"),
        ]
    )
    config = with_grow(config, max_rounds=1)
    grown, growth = await grown_by(config, ScriptedTeacher(lambda _: next(answers, questions())))
    assert grown == []
    assert growth.left_out == {
        "near-duplicate": 1,
        "refusal": 1,
        "language": 1,
        "no prompt": sum(growth.left_out.values()) - 4,
        "talks about the task": 1,
    }


async def test_a_failed_request_ends_the_growing(config: Config) -> None:
    """Later rounds hang on it and are paid for: nothing more is asked until it has been answered."""

    def failing(request: TeacherRequest) -> str:
        if "Rewrite a question" in asked(request):
            message = "the line was cut"
            raise TeacherError(message, reason="lost")
        return inventive(request)

    teacher = ScriptedTeacher(failing)
    with pytest.raises(PartialError, match="the line was cut"):
        await grown_by(with_grow(config, target=50), teacher)
    assert len(teacher.asked) <= 64


async def test_personas_are_asked_for(config: Config) -> None:
    """Each request speaks for one of the people, who stands on what has grown from it."""
    config = with_grow(config, personas=("everyone.en.txt",))
    teacher = ScriptedTeacher(inventive)
    grown, _ = await grown_by(config, teacher)
    assert all(each.persona for each in grown)
    assert len({each.persona for each in grown}) > 1


async def test_questions_to_documents_say_where_they_are_from(config: Config, tmp_path: Path) -> None:
    """Each passage is asked about; its questions carry file, line and heading, and the passage where it is wanted."""
    (tmp_path / "guide.md").write_text("# Cooling\n\nClean the fans.\n\n# Power\n\nLower the limit.\n")
    documents = {"files": (str(tmp_path / "guide.md"),), "ground": True}
    config = with_values(config, generate={"documents": documents, "grow": {}})
    teacher = ScriptedTeacher(lambda request: questions("How?" if "fans" in asked(request) else "Why?", "When now?"))
    with seeded(config) as pool:
        await grow(config, teacher, pool)
        assert [grown.source for grown in pool.grown] == ["guide.md:3 > Cooling"] * 2 + ["guide.md:7 > Power"]
        assert "Clean the fans." in pool.grown[0].prompt
        assert pool.growth() == Growth(3, {"near-duplicate": 1})
        write_grown(Workspace(tmp_path), pool)
        written = load_prompts([str(Workspace(tmp_path).grown)])
        assert [prompt.text for prompt in written] == [grown.prompt for grown in pool.grown]


def test_a_round_asks_for_no_more_than_is_wanted(config: Config) -> None:
    """The last round asks for what is missing, and a round never has more than its share of requests."""
    growing = Growing.of(with_grow(config, method="evolve"))
    with seeded(config) as pool:
        assert [pool.text(number) for number in range(len(pool))] == SEEDS.splitlines()
        assert len(growing.round(1, pool, 5)) == 5
        assert len(growing.round(1, pool, 10_000)) == 64
