"""The rooms keep their rules: who prints, who reads the environment, what is never done anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "potstill"
MODULES = sorted(SOURCE.rglob("*.py"))


def attributes(tree: ast.AST) -> Iterator[str]:
    """Dotted names such as `sys.stdout` that stand in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """All calls in a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def parsed(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def test_there_are_modules() -> None:
    """The lists below are about something."""
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_keeps_the_house_rules(path: Path) -> None:
    """A module says what it is for; only cli writes to the terminal; only config reads the environment."""
    tree = parsed(path)
    assert ast.get_docstring(tree), "no module docstring"
    names = set(attributes(tree))
    room = path.relative_to(SOURCE).parts[0]
    if room not in {"cli", "__main__.py"}:
        assert not names & {"sys.stdout", "sys.stderr"}
        assert not [call for call in calls(tree) if isinstance(call.func, ast.Name) and call.func.id == "print"]
    if room != "config":
        assert not names & {"os.getenv", "os.environ"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_foreign_is_executed(path: Path) -> None:
    """No call trusts remote code, unpickles, evaluates text or opens a shell."""
    for call in calls(parsed(path)):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        for name in ("trust_remote_code", "shell", "allow_pickle"):
            value = keywords.get(name)
            assert not (isinstance(value, ast.Constant) and value.value is True), f"{name}=True in line {call.lineno}"
        if isinstance(call.func, ast.Name):
            assert call.func.id not in {"eval", "exec"}, f"line {call.lineno}"
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            assert call.func.value.id not in {"pickle", "marshal", "shelve"}, f"line {call.lineno}"
