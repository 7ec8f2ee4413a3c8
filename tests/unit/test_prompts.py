"""Roles, templates, schemas: filled strictly, named by hash, and every fault said with its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.config import Config, with_values
from potstill.errors import InputError
from potstill.prompts import (
    Prompt,
    fill,
    load_personas,
    load_prompts,
    load_roles,
    load_schema,
    load_template,
    prompt_files,
)
from potstill.workspace import Workspace

ROLE = "name: cook\ndescription: {en: cooks}\nsystem: {en: You cook., zh-TW: 你是廚師。}\n"


@given(st.text())
def test_what_is_filled_in_stays_plain_text(value: str) -> None:
    """A value that looks like a template, a path or markup comes out as it went in."""
    assert fill("<{{ place }}>", {"place": value}) == f"<{value}>"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("{{ a }}", {}),
        ("{{ a }}", {"a": "1", "b": "2"}),
        ("no place", {"a": "1"}),
        ("{{ a", {"a": "1"}),
        ("{{ a.__class__.__mro__ }}", {"a": "1"}),
    ],
)
def test_places_and_values_must_agree(template: str, values: dict[str, str]) -> None:
    """A place without a value, a value without a place, broken and prying templates are refused."""
    with pytest.raises(InputError):
        fill(template, values, origin="t.txt")


def test_a_role_in_both_languages(tmp_path: Path) -> None:
    """The system prompt is the one of the language; another language or a second role of the name is refused."""
    path = tmp_path / "cook.yaml"
    path.write_text(ROLE)
    (english,), (chinese,) = load_roles([str(path)], "en"), load_roles([str(path)], "zh-TW")
    assert (english.system, chinese.system) == ("You cook.", "你是廚師。")
    assert english.sha != chinese.sha
    with pytest.raises(InputError, match="given twice"):
        load_roles([str(path), str(path)], "en")
    path.write_text(ROLE.replace("zh-TW: 你是廚師。", 'zh-TW: " "'))
    with pytest.raises(InputError, match=r"cook\.yaml: system\.zh-TW: empty"):
        load_roles([str(path)], "zh-TW")


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ("name: [", "r.yaml:"),
        ("name: ../x\ndescription: {}\nsystem: {}\n", "name"),
        ("name: x\nsystem: {en: a}\n", "description"),
        ("name: x\ndescription: {}\nsystem: {en: a}\nsytem: {}\n", "sytem"),
        ("name: x\ndescription: {}\nsystem: {de: a}\n", "no text for language 'en', only de"),
    ],
)
def test_a_faulty_role_names_file_and_field(tmp_path: Path, content: str, needle: str) -> None:
    """Broken YAML, a name that is a path, a missing, a misspelt and an untranslated field."""
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        load_roles([str(tmp_path / "r.yaml")], "en")
    assert needle in caught.value.message


def test_templates_with_variables_give_every_combination(tmp_path: Path) -> None:
    """A YAML prompt file is a list, or a template with variables; both at once, or neither, is refused."""
    path = tmp_path / "p.yaml"
    path.write_text('template: "{{ how }} is {{ what }}?"\nvariables: {how: [How hot, Why], what: [a card, a fan]}\n')
    assert [prompt.text for prompt in load_prompts([str(path)])] == [
        "How hot is a card?",
        "How hot is a fan?",
        "Why is a card?",
        "Why is a fan?",
    ]
    for content in ("prompts: [a]\ntemplate: b\n", "variables: {}\n", 'prompts: [" "]\n'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"p\.yaml"):
            load_prompts([str(path)])


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_prompt_is_named_by_its_text_alone(left: str, right: str) -> None:
    """Two prompts share an id when and only when they share the text, wherever they stand."""
    assert (Prompt(text=left, source="a").id == Prompt(text=right, source="b").id) == (left == right)


def test_a_template_of_ones_own_stands_before_a_shipped_one(tmp_path: Path) -> None:
    """A file is read by its path; a name finds the shipped template of the language; an unknown one is refused."""
    (tmp_path / "mine.txt").write_text("mine")
    assert load_template(str(tmp_path / "mine.txt"), "en") == "mine"
    assert "{{ question }}" in load_template("rubric", "zh-TW")
    with pytest.raises(InputError):
        load_template("../../etc/passwd", "en")


def test_grown_prompts_follow_the_given_ones(tmp_path: Path) -> None:
    """Where growing is asked for, what has grown in the workspace joins the plan; else it does not."""
    (tmp_path / "q.txt").write_text("given\n")
    Workspace(tmp_path).grown.parent.mkdir()
    Workspace(tmp_path).grown.write_text('{"prompt": "grown"}\n{"prompt": "given"}\n')
    config = with_values(Config(workspace=str(tmp_path)), generate={"prompts": (str(tmp_path / "q.txt"),)})
    assert [prompt.text for prompt in prompt_files(config)] == ["given"]
    config = with_values(config, generate={"grow": {"target": 5}})
    assert [prompt.text for prompt in prompt_files(config)] == ["given", "grown"]
    nothing = with_values(Config(workspace=str(tmp_path / "x")), generate={"from_traces": True})
    assert list(prompt_files(nothing)) == []


def test_personas_come_once_each(tmp_path: Path) -> None:
    """Comments and blank lines are no people, and nobody is there twice."""
    (tmp_path / "people.txt").write_text("# who\na nurse\n\na clerk\na nurse\n")
    assert load_personas([str(tmp_path / "people.txt")]) == ("a nurse", "a clerk")
    with pytest.raises(InputError, match="persona file not found"):
        load_personas(["nobody.txt"])


@pytest.mark.parametrize("content", ["{", "[]", '{"type": 3}'])
def test_a_schema_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """Broken JSON, no object, and no JSON Schema: each is said with the file."""
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(InputError, match=r"s\.json"):
        load_schema(str(tmp_path / "s.json"))
    assert load_schema(None) is None
