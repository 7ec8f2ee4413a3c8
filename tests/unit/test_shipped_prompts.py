"""What ships in two languages: roles, tasks, templates, personas and the emulator's FAQs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from potstill.generate.languages import language_of
from potstill.prompts import load_personas, load_prompts, load_roles, load_template, shipped_roles
from potstill.teacher.emulator.faq import load_faq
from potstill.workspace import shipped

LANGUAGES = ("en", "zh-TW")
TASKS = sorted({path.name.split(".")[0] for path in (shipped("prompts") / "tasks").iterdir()})
TEMPLATES = sorted({path.name.split(".")[0] for path in (shipped("prompts") / "templates").iterdir()})


def test_there_is_something_to_test() -> None:
    """The lists that these tests go through are not empty."""
    assert {"faq-train", "faq-queries", "ai-basics", "costs"} <= set(TASKS)
    assert {"self-instruct", "evolve", "rubric", "merge"} <= set(TEMPLATES)
    assert len(shipped_roles()) >= 4


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_there_in_both_languages(task: str, language: str) -> None:
    """Each task file has its twin, and every prompt in it is written in the language that its name says."""
    prompts = load_prompts([f"{task}.{language}.txt"])
    assert len(prompts) >= 10
    assert {language_of(prompt.text) for prompt in prompts} <= {language, "zh" if language == "zh-TW" else language}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_has_the_same_places_in_both_languages(name: str, language: str) -> None:
    """The templates of one name take the same values, so that a config may change its language."""
    from jinja2 import Environment, meta

    places = [meta.find_undeclared_variables(Environment().parse(load_template(name, each))) for each in LANGUAGES]
    assert places[0] == places[1]
    assert language_of(load_template(name, language)) == language


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_faq_answers_its_own_questions(language: str) -> None:
    """Each question of a FAQ finds its own topic; each persona's phrase stands in the role of that name."""
    data = yaml.safe_load((shipped("prompts") / "faq" / f"hardware.{language}.yaml").read_text("utf-8"))
    faq = load_faq(f"hardware.{language}")
    roles = {role.name: role.system for role in load_roles(tuple(data["personas"]), language)}
    assert all(phrase in roles[name] for name, phrase in data["personas"].items())
    wrong = [
        question
        for item in data["items"]
        for question in item["questions"]
        if (found := faq.nearest(question)) is None or found.id != item["id"]
    ]
    assert wrong == []
    assert {language_of(text) for item in data["items"] for text in item["answers"].values()} == {language}


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_questions_find_a_topic_and_stand_in_no_training_file(language: str) -> None:
    """The questions kept for `infer` are answered from the FAQ, and none of them is trained on."""
    faq = load_faq(f"hardware.{language}")
    queries = load_prompts([f"faq-queries.{language}.txt"])
    assert all(faq.nearest(prompt.text) is not None for prompt in queries)
    assert not {p.text for p in queries} & {p.text for p in load_prompts([f"faq-train.{language}.txt"])}


@pytest.mark.parametrize("language", LANGUAGES)
def test_personas(language: str) -> None:
    """A file of people who ask ships in each language, each person once."""
    people = load_personas([f"everyone.{language}.txt"])
    assert len(set(people)) == len(people) == 12
    assert language_of(" ".join(people)) == language


def test_the_chinese_files_use_taiwans_words() -> None:
    """No Simplified characters, and none of the words that are used across the strait instead."""
    foreign = ("內存", "顯卡", "數據", "視頻", "軟件", "硬件", "網絡", "信息", "默認", "用戶")
    files = [path for path in shipped("prompts").rglob("*zh-TW*") if path.is_file()]
    assert len(files) > 10
    found = {(Path(path).name, word) for path in files for word in foreign if word in path.read_text("utf-8")}
    assert found == set()
