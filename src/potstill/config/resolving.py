"""Where each value comes from: flag > `--set` > environment (`POTSTILL__SECTION__KEY`) > file > default."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from potstill.config.secrets import Secrets, read_secrets
from potstill.config.whole import Config, field_of, flatten
from potstill.errors import ConfigError
from potstill.files import check_text, read_text

ENV_PREFIX = "POTSTILL__"
DEFAULT_FILE = Path("potstill.yaml")
BASE_URL_VARIABLES = {"gemini": "GOOGLE_GEMINI_BASE_URL", "openai": "OPENAI_BASE_URL"}
"""Where each provider's SDK looks for another server."""


@dataclass(frozen=True)
class Resolved:
    """A config with the origin of every value, e.g. `{"teacher.rpm": "file potstill.yaml"}`."""

    config: Config
    origins: Mapping[str, str]
    secrets: Secrets = field(default_factory=Secrets)


def resolve(
    file: Path | None = None,
    settings: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Read the config from its four sources.

    `settings` are `--set` texts (`section.key=value`, value in YAML); `flags` maps a key to (flag name, value);
    `environ` stands in for the process environment. Raises ConfigError naming the key and its source.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value, origin in _sources(file, settings, flags or {}, environ):
        _put(values, key, value, origin)
        origins[key] = origin
    variable = BASE_URL_VARIABLES.get(str(values.get("teacher", {}).get("provider", "gemini")), "")
    if _weak(origins.get("teacher.base_url")) and environ.get(variable):
        _put(values, "teacher.base_url", environ[variable], f"environment {variable}")
        origins["teacher.base_url"] = f"environment {variable}"
    config = _validated(values, origins)
    return Resolved(config, _leaf_origins(config, origins), read_secrets(environ, config.teacher.provider))


def _sources(
    file: Path | None, settings: Sequence[str], flags: Mapping[str, tuple[str, Any]], environ: Mapping[str, str]
) -> list[tuple[str, Any, str]]:
    """All given values as (key, value, origin), the weakest source first."""
    found = [*_from_file(file), *_from_environment(environ)]
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            message = f"--set {text!r} is not of the form section.key=value"
            raise ConfigError(message)
        found.append((key.strip(), parse_yaml(value, f"--set {key}"), "--set"))
    found += [(key, value, flag) for key, (flag, value) in flags.items()]
    return found


def _from_file(file: Path | None) -> list[tuple[str, Any, str]]:
    if file is None and not DEFAULT_FILE.is_file():
        return []
    path = file or DEFAULT_FILE
    data = parse_yaml(read_text(path, "config file"), str(path))
    if data is None:
        return []
    if not isinstance(data, dict):
        message = f"{path}: a config file holds `section:` blocks, not a {type(data).__name__}"
        raise ConfigError(message)
    return [(key, value, f"file {path}") for key, value in _leaves(data)]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            found.append((key, parse_yaml(environ[name], name), f"environment {name}"))
    return found


def _weak(origin: str | None) -> bool:
    """Whether a provider's own variable outranks where a value is from: nowhere, or a file."""
    return origin is None or origin.startswith("file ")


def _leaves(data: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The values of a nested mapping by dotted key; a mapping that is itself a value (overrides) stays whole."""
    known = flatten(Config())
    found: list[tuple[str, Any]] = []
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and _is_section(key, known):
            found += _leaves(value, f"{key}.")
        elif value is not None or key in known or not _is_section(key, known):
            found.append((key, value))
    return found


def _put(values: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key; raises ConfigError for a key that the config does not have."""
    _check_key(key, origin)
    *sections, name = key.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value


def _check_key(key: str, origin: str) -> None:
    known = flatten(Config())
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    last = key.rsplit(".", 1)[-1]
    near = near or [leaf for leaf in known if leaf.rsplit(".", 1)[-1] == last][:1]
    message = f"unknown config key {key!r} ({origin})"
    if _is_section(key, known):
        message = f"config key {key!r} is a section, not a value ({origin})"
    raise ConfigError(message, hint=f"did you mean {near[0]!r}?" if near else "`potstill init` writes all keys")


def _is_section(key: str, known: Mapping[str, Any]) -> bool:
    return any(leaf.startswith(f"{key}.") for leaf in known)


def _validated(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems, hints = [], []
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"])
            given = next((known for known in origins if f"{key}.".startswith(f"{known}.")), key)
            said = item["msg"].removeprefix("Value error, ")
            if item["type"] == "string_pattern_mismatch":  # a regular expression tells a user little
                said = "not of the form that is wanted"
                hints.append(f"{given}: {field_of(given).description}")
            problems.append(f"{key}: {said}, got {item['input']!r} ({origins.get(given, 'config')})")
        raise ConfigError("; ".join(problems), hint="; ".join(hints) or None) from error


def _leaf_origins(config: Config, origins: Mapping[str, str]) -> dict[str, str]:
    return {key: origins.get(key, "default") for key in flatten(config)}


def parse_yaml(text: str, origin: str) -> Any:
    """What a file, a variable or an option says; raises ConfigError naming it."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        message = f"{origin}{where}: {problem}"
        raise ConfigError(message) from error
    check_text(data, origin)
    return data
