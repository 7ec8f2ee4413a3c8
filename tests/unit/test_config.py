"""The one config: where values come from, which source wins, and what an error names."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError

from potstill.config import (
    Config,
    Secrets,
    Section,
    field_of,
    flatten,
    json_schema,
    read_secrets,
    resolve,
    with_values,
)
from potstill.errors import ConfigError, InputError

KEYS = sorted(flatten(Config()))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, so that no potstill.yaml of the developer's is read."""
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str) -> Path:
    """A config file with this text."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def sections(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    """Every section of the config, the whole one first."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.default, Section):
            yield from sections(type(field.default))


def test_nothing_given_is_all_defaults() -> None:
    """Without any source the config is the default one, and every value says so."""
    found = resolve(environ={})
    assert found.config == Config()
    assert set(found.origins.values()) == {"default"}
    assert set(found.origins) == set(KEYS)


@pytest.mark.parametrize(
    ("file", "environ", "setting", "flag", "value", "origin"),
    [
        ("7", None, None, None, 7, "file"),
        ("7", "8", None, None, 8, "environment POTSTILL__TEACHER__RPM"),
        ("7", "8", "9", None, 9, "--set"),
        ("7", "8", "9", 10, 10, "--rpm"),
        (None, "8", None, 10, 10, "--rpm"),
    ],
)
def test_the_stronger_source_wins(
    tmp_path: Path,
    file: str | None,
    environ: str | None,
    setting: str | None,
    flag: int | None,
    value: int,
    origin: str,
) -> None:
    """Flag beats --set beats environment beats file beats default, and the origin names the winner."""
    path = write(tmp_path, f"teacher:\n  rpm: {file}\n") if file else None
    found = resolve(
        path,
        [f"teacher.rpm={setting}"] if setting else [],
        {"teacher.rpm": ("--rpm", flag)} if flag else {},
        {"POTSTILL__TEACHER__RPM": environ} if environ else {},
    )
    assert found.config.teacher.rpm == value
    assert found.origins["teacher.rpm"].startswith(origin)


def test_the_file_in_the_folder_is_found(tmp_path: Path) -> None:
    """potstill.yaml in the current folder is read where no file is named."""
    (tmp_path / "potstill.yaml").write_text("language: zh-TW\n")
    found = resolve(environ={})
    assert found.config.language == "zh-TW"
    assert found.origins["language"] == "file potstill.yaml"


def test_an_empty_file_and_an_empty_section_are_defaults(tmp_path: Path) -> None:
    """A file without content, or a section whose keys are all comments, changes nothing."""
    assert resolve(write(tmp_path, ""), environ={}).config == Config()
    assert resolve(write(tmp_path, "teacher:\n  # rpm: 5\n"), environ={}).config == Config()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("teacher.rmp", "teacher.rpm"),
        ("teacher.modle", "teacher.model"),
        ("rpm", "teacher.rpm"),
        ("distil.epochs", "distill.epochs"),
        ("generate.samples_per_promt", "generate.samples_per_prompt"),
    ],
)
def test_a_misspelt_key_names_its_neighbour(key: str, hint: str) -> None:
    """An unknown key is an error that names the key, its source and the nearest one that exists."""
    with pytest.raises(ConfigError) as caught:
        resolve(settings=[f"{key}=1"], environ={})
    assert repr(key) in caught.value.message
    assert "--set" in caught.value.message
    assert caught.value.hint == f"did you mean {hint!r}?"


def test_an_unknown_key_in_file_or_environment_names_where_it_stands(tmp_path: Path) -> None:
    """The error says which file, or which variable."""
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        resolve(write(tmp_path, "teacher:\n  rmp: 1\n"), environ={})
    with pytest.raises(ConfigError, match="POTSTILL__TEACHER__RMP"):
        resolve(environ={"POTSTILL__TEACHER__RMP": "1"})


def test_a_section_is_no_value() -> None:
    """A section cannot be set as if it were a value."""
    with pytest.raises(ConfigError, match="is a section"):
        resolve(settings=["teacher=3"], environ={})


@pytest.mark.parametrize(
    ("setting", "needle"),
    [
        ("teacher.rpm=-1", "teacher.rpm"),
        ("teacher.rpm=many", "teacher.rpm"),
        ("teacher.timeout_s=5", "teacher.timeout_s"),
        ("budget.max_usd=-0.01", "budget.max_usd"),
        ("generate.splits.test=1.5", "generate.splits.test"),
        ("distill.name=../../etc", "distill.name"),
        ("teacher.service=cheap", "teacher.service"),
        ("teacher.rpm=[1", "--set teacher.rpm"),
    ],
)
def test_a_value_out_of_range_names_its_key(setting: str, needle: str) -> None:
    """A wrong value is a ConfigError with the key, the value and the source."""
    with pytest.raises(ConfigError) as caught:
        resolve(settings=[setting], environ={})
    assert needle in caught.value.message


def test_a_wrong_value_is_blamed_on_its_own_source() -> None:
    """Not on that of a key with the same beginning."""
    flags = {"generate.temperature": ("--temperature", 1.0), "generate.temperatures": ("--temperatures", "hot")}
    with pytest.raises(ConfigError, match=r"generate\.temperatures.*\(--temperatures\)"):
        resolve(flags=flags, environ={})


def test_half_a_character_is_refused() -> None:
    """A value that YAML can escape and no file can hold is an input error that names its source."""
    with pytest.raises(InputError, match=r"--set cache\.namespace"):
        resolve(settings=['cache.namespace="\\ud83d"'], environ={})


@pytest.mark.parametrize(
    "text", ["generate:\n  prompts: &a [*a]\n", "generate: &a\n  x: *a\n", f"x: {'[' * 5000}", "x: &a {*a : 1}\n"]
)
def test_a_file_that_has_no_end_is_refused(tmp_path: Path, text: str) -> None:
    """A value that holds itself, by YAML's references, or is nested too deeply is a ConfigError that names the file."""
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        resolve(write(tmp_path, text), environ={})


@pytest.mark.parametrize("text", ["teacher: [1, 2]\nbudget: 3\n", "- a\n- b\n", "just text\n", "teacher:\n\trpm: 1\n"])
def test_a_file_of_the_wrong_shape_is_refused(tmp_path: Path, text: str) -> None:
    """A file that is no mapping of sections, or no YAML, is a ConfigError that names the file."""
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        resolve(write(tmp_path, text), environ={})


@pytest.mark.parametrize("url", ["localhost:8018", "http://", "https://x y", "ftp://x"])
def test_a_server_is_an_address_of_http(url: str) -> None:
    """What no request could ever reach is refused before any is counted against the budget; the variable is named."""
    with pytest.raises(ConfigError, match="GOOGLE_GEMINI_BASE_URL"):
        resolve(environ={"GOOGLE_GEMINI_BASE_URL": url})


@pytest.mark.parametrize("name", ["bad name", "a/b/c", "owner", "a/b--c", "a/.b"])
def test_a_name_of_the_wrong_form_says_what_is_wanted(name: str) -> None:
    """In words, not by a regular expression."""
    with pytest.raises(ConfigError, match=r"generate\.push: .*\(--push\)") as caught:
        resolve(flags={"generate.push": ("--push", name)}, environ={})
    assert "match" not in caught.value.message
    assert "owner/name" in (caught.value.hint or "")


def test_set_needs_an_equals_sign() -> None:
    """`--set` without a value is refused."""
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        resolve(settings=["teacher.rpm"], environ={})


def test_splits_leave_something_to_train_on() -> None:
    """Validation and test cannot take everything together."""
    with pytest.raises(ConfigError, match="below 1"):
        resolve(settings=["generate.splits.test=0.5", "generate.splits.validation=0.5"], environ={})


def test_a_mapping_can_be_a_value(tmp_path: Path) -> None:
    """Price overrides are a mapping by model and stay one, in exact decimals."""
    path = write(tmp_path, "prices:\n  overrides:\n    my-model: {input: '0.1', output: '0.2'}\n")
    found = resolve(path, environ={}).config.prices.overrides
    assert found == {"my-model": {"input": Decimal("0.1"), "output": Decimal("0.2")}}


def test_money_is_exact() -> None:
    """A budget of 0.1 dollars is 0.1 dollars, not the nearest float."""
    assert resolve(settings=["budget.max_usd=0.1"], environ={}).config.budget.max_usd == Decimal("0.1")


def test_the_sdk_variable_redirects_and_the_own_one_wins() -> None:
    """GOOGLE_GEMINI_BASE_URL sets teacher.base_url; POTSTILL__TEACHER__BASE_URL is the more specific of the two."""
    both = {"GOOGLE_GEMINI_BASE_URL": "http://a", "POTSTILL__TEACHER__BASE_URL": "http://b"}
    assert resolve(environ={"GOOGLE_GEMINI_BASE_URL": "http://a"}).config.teacher.base_url == "http://a"
    assert resolve(environ=both).config.teacher.base_url == "http://b"


def test_every_field_is_described_and_every_section_is_closed() -> None:
    """No field without a description, no section that takes an unknown key or can be changed."""
    found = list(sections())
    assert len(found) > 10
    for section in found:
        assert section.model_config["extra"] == "forbid"
        assert section.model_config["frozen"]
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_a_config_is_frozen() -> None:
    """Nothing changes a config once it is made."""
    with pytest.raises(ValidationError):
        Config().teacher.rpm = 3  # type: ignore[misc]


def test_a_changed_copy_is_validated() -> None:
    """`with_values` changes what it names, keeps the rest, and checks it like a file."""
    found = with_values(Config(), teacher={"rpm": 3})
    assert (found.teacher.rpm, found.generate) == (3, Config().generate)
    with pytest.raises(ValidationError):
        with_values(Config(), teacher={"rpm": 0})


def test_the_schema_knows_every_key() -> None:
    """The editor's schema describes every section, and the default config fits it by name."""
    schema = json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False


@given(st.sampled_from(KEYS))
def test_field_of_finds_every_key(key: str) -> None:
    """Every dotted key leads to its declaration."""
    assert field_of(key).description


@given(st.integers(1, 10**6), st.floats(0, 2), st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20))
def test_what_is_written_is_what_is_read(rpm: int, temperature: float, name: str) -> None:
    """A config dumped to YAML and given again by --set comes back the same."""
    made = with_values(Config(), teacher={"rpm": rpm, "model": f"m{name}"}, generate={"temperature": temperature})
    settings = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6).removesuffix('...' + chr(10))}"
        for key, value in flatten(made).items()
        if key in {"teacher.rpm", "teacher.model", "generate.temperature"}
    ]
    assert resolve(settings=settings, environ={}).config == made


def test_the_key_is_found_in_the_sdks_order() -> None:
    """GOOGLE_API_KEY wins over GEMINI_API_KEY, as in the SDK; an empty one does not count."""
    both = read_secrets({"GEMINI_API_KEY": "gemini-key", "GOOGLE_API_KEY": "google-key"})
    assert both.teacher_key_variable == "GOOGLE_API_KEY"
    only = read_secrets({"GEMINI_API_KEY": "gemini-key", "GOOGLE_API_KEY": ""})
    assert only.teacher_key_variable == "GEMINI_API_KEY"
    assert read_secrets({}).teacher_key is None


def test_each_provider_has_its_own_key_and_address() -> None:
    """OPENAI_API_KEY and OPENAI_BASE_URL count for `provider: openai` only, Gemini's for Gemini only; all are blanked."""
    environ = {
        "GEMINI_API_KEY": "gemini-key",
        "OPENAI_API_KEY": "openai-key",
        "GOOGLE_GEMINI_BASE_URL": "http://gemini",
        "OPENAI_BASE_URL": "http://openai",
    }
    for provider, key, url in (("gemini", "gemini-key", "http://gemini"), ("openai", "openai-key", "http://openai")):
        found = resolve(settings=[f"teacher.provider={provider}"], environ=environ)
        assert found.secrets.teacher_key.get_secret_value() == key
        assert found.config.teacher.base_url == url
        assert found.secrets.redact("gemini-key openai-key") == "[redacted] [redacted]"
    given = resolve(settings=["teacher.provider=openai", "teacher.base_url=http://mine"], environ=environ)
    assert given.config.teacher.base_url == "http://mine"


def test_server_keys_are_a_list() -> None:
    """POTSTILL_SERVE_API_KEYS holds several keys, with commas between them; blanks are none."""
    found = read_secrets({"POTSTILL_SERVE_API_KEYS": " first-key, ,second-key,"})
    assert [key.get_secret_value() for key in found.serve_keys] == ["first-key", "second-key"]


def test_the_qdrant_servers_key_is_a_secret() -> None:
    """POTSTILL_QDRANT_API_KEY is read, blanked in any text, and in no config."""
    found = resolve(environ={"POTSTILL_QDRANT_API_KEY": "cluster-key"})
    assert found.secrets.qdrant_key == SecretStr("cluster-key")
    assert found.secrets.redact("a cluster-key b") == "a [redacted] b"
    assert "cluster-key" not in repr(found) + found.config.model_dump_json()


def test_secrets_are_never_shown() -> None:
    """A secret is blanked in any text, and is in no repr of what carries it."""
    secrets = Secrets(teacher_key=SecretStr("very-secret-key"), serve_keys=(SecretStr("other-secret"),))
    assert secrets.redact("a very-secret-key b other-secret") == "a [redacted] b [redacted]"
    resolved = resolve(environ={"GEMINI_API_KEY": "very-secret-key"})
    assert "very-secret-key" not in repr(resolved) + repr(secrets) + resolved.config.model_dump_json()
