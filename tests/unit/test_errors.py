"""The tree of expected failures, drawn at the top of errors.py, is the tree that the classes make."""

from __future__ import annotations

import inspect
import re

from potstill import errors

CLASSES = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]


def test_every_class_is_in_the_drawing_with_its_exit_code() -> None:
    """Each failure stands in the module's drawing; where an exit code stands beside it, the class has that one."""
    drawing = dict(re.findall(r"(\w+Error)\b *(\d?)", errors.__doc__ or ""))
    assert set(drawing) == {item.__name__ for item in CLASSES} | {"TypeError", "KeyError"}
    for item in CLASSES:
        assert drawing[item.__name__] in {"", str(item.exit_code)}, item.__name__


def test_exit_codes_are_the_contracts() -> None:
    """The codes are those that scripts rely on, and no expected failure ends in 1 or 0."""
    codes = {item.exit_code for item in CLASSES if item is not errors.PotstillError}
    assert codes == {2, 3, 4, 5, 6, 7, 8}


def test_an_error_carries_its_next_step() -> None:
    """The message is what str() says; the hint belongs to the instance."""
    error = errors.BudgetError("too dear", hint="raise it")
    assert (str(error), error.message, error.hint) == ("too dear", "too dear", "raise it")
    assert errors.BudgetError("again").hint is None
