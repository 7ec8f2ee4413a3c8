"""Reading price files: shipped ones by name, the user's own in JSON or YAML, alone or on top of a shipped one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import InputError
from potstill.files import read_text

SHIPPED = {"current": "prices.json", "source-design": "source-design.json"}
"""Books by name: today's figures, and those of the source design, kept so that its sums can be reproduced."""


def read_book(name: str | None) -> tuple[str, Any]:
    """The raw content of a price file and what to call it; a file with `extends` is laid over the book it names."""
    if name is None or name in SHIPPED:
        file = SHIPPED[name or "current"]
        return file, json.loads(shipped_text(file))
    data = parse(read_text(Path(name), "price file"), name)
    if not isinstance(data, dict) or "extends" not in data:
        return name, data
    base = data.pop("extends")
    if base not in SHIPPED:
        message = f"{name}: extends: there is no book called {base!r}"
        raise InputError(message, hint=f"shipped books: {', '.join(SHIPPED)}")
    return name, _laid_over(json.loads(shipped_text(SHIPPED[base])), data, name)


def shipped_text(file: str) -> str:
    """The text of a data file that comes with this package."""
    return files("potstill.pricing").joinpath(file).read_text("utf-8")


def parse(text: str, origin: str) -> Any:
    """YAML, or JSON for .json; raises InputError naming file and line."""
    if Path(origin).suffix != ".json":
        try:
            return yaml.load(text, Loader=_Texts)  # noqa: S506  (a SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark else ""
            message = f"{origin}{where}: not YAML: {getattr(error, 'problem', None) or error}"
            raise InputError(message) from error
    try:
        return json.loads(text, parse_float=str)
    except json.JSONDecodeError as error:
        message = f"{origin}:{error.lineno}: not JSON: {error.msg}"
        raise InputError(message) from error


class _Texts(yaml.SafeLoader):
    """YAML whose decimal numbers and days stay texts, so that 0.1 is exactly 0.1."""


_Texts.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":float", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _laid_over(base: dict[str, Any], own: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The base with the own figures first: of two rows that hold at once, the first one counts."""
    models = {model["id"]: model for model in base["models"]}
    for model in own.get("models", ()):
        if not isinstance(model, dict) or not isinstance(model.get("id"), str):
            message = f"{origin}: models: every model needs an id"
            raise InputError(message)
        known = models.get(model["id"], {})
        prices = [*model.get("prices", ()), *known.get("prices", ())]
        models[model["id"]] = {**known, **model, "prices": prices}
    lists = {key: [*own.get(key, ()), *base.get(key, ())] for key in ("limits", "tiers", "grounding", "claims")}
    sources = {**base.get("sources", {}), **own.get("sources", {})}
    return {**base, "name": "custom", **own, **lists, "sources": sources, "models": list(models.values())}
