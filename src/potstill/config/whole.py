"""The whole config, and what can be asked of it: its keys, their declarations, its schema, a changed copy."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo

from potstill.config.sections import BudgetConfig, GenerateConfig, Section, TeacherConfig
from potstill.config.student_sections import CacheConfig, DistillConfig, InferConfig, ServeConfig, StudentConfig


class PricesConfig(Section):
    """The price book."""

    file: str | None = Field(
        None,
        description="Price file in place of the shipped one, or on top of it (`extends: current`); "
        "`source-design`: the source design's own figures.",
    )
    overrides: dict[str, dict[str, Decimal]] = Field(
        {},
        description="model -> {input, output, cached_input}: dollars per million tokens, over the book; "
        "batch_input, flex_output and so on for one service.",
    )
    tokenizer: str | None = Field(
        None,
        description="A tokenizer.json, or its folder, to count prompts with; null: a formula. See `cost estimate`.",
    )
    currency: str = Field(
        "USD", pattern="^[A-Z]{3}$", description="Currency for display, e.g. TWD; all sums are dollars."
    )
    rate: Decimal | None = Field(None, gt=0, description="Units of `currency` for a dollar. None is built in.")


class Config(Section):
    """Everything that potstill can be told."""

    workspace: str = Field("workspace", min_length=1, description="Folder for everything that potstill makes.")
    language: Literal["en", "zh-TW"] = Field("en", description="Language of the roles' system prompts and templates.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="The hosted model.")
    budget: BudgetConfig = Field(BudgetConfig(), description="How much may be spent.")
    generate: GenerateConfig = Field(GenerateConfig(), description="Making the dataset.")
    student: StudentConfig = Field(StudentConfig(), description="The local model.")
    distill: DistillConfig = Field(DistillConfig(), description="Training the student.")
    serve: ServeConfig = Field(ServeConfig(), description="Serving the student.")
    cache: CacheConfig = Field(CacheConfig(), description="Answers served before.")
    infer: InferConfig = Field(InferConfig(), description="The hybrid router.")
    prices: PricesConfig = Field(PricesConfig(), description="The price book.")


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """The config as `{"section.key": value}`, in the order of its fields."""
    leaves: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def field_of(key: str) -> FieldInfo:
    """The declaration of a dotted key: its description, type and default."""
    section: type[BaseModel] = Config
    *names, last = key.split(".")
    for name in names:
        section = type(section.model_fields[name].default)
    return section.model_fields[last]


def json_schema() -> dict[str, Any]:
    """JSON Schema of the config file, for editors."""
    schema = Config.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "potstill.yaml"}


def with_values(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A copy with some values of some sections changed, validated as a file would be."""
    data = config.model_dump()
    for section, changes in sections.items():
        data[section] = {**data[section], **changes}
    return Config.model_validate(data)
