"""The one config of all commands: frozen data, a description on every field, and where each value came from.

This room is the only reader of the environment. `sections` and `student_sections` declare, `whole` puts together,
`resolving` reads the four sources, `secrets` keeps the keys apart, `launching` hears the launcher.
"""

from potstill.config.launching import take_wish
from potstill.config.resolving import Resolved, parse_yaml, resolve
from potstill.config.secrets import KEY_VARIABLES, Secrets, read_secrets
from potstill.config.sections import (
    BudgetConfig,
    DocumentsConfig,
    ExportFormat,
    FilterConfig,
    GenerateConfig,
    GrowConfig,
    JudgeConfig,
    SafeName,
    Section,
    SplitConfig,
    TeacherConfig,
)
from potstill.config.student_sections import (
    CacheConfig,
    DistillConfig,
    InferConfig,
    JudgeSettings,
    LoraSettings,
    ServeConfig,
    ServeLimits,
    SoftTargets,
    StudentConfig,
)
from potstill.config.whole import Config, PricesConfig, field_of, flatten, json_schema, with_values

__all__ = [
    "KEY_VARIABLES",
    "BudgetConfig",
    "CacheConfig",
    "Config",
    "DistillConfig",
    "DocumentsConfig",
    "ExportFormat",
    "FilterConfig",
    "GenerateConfig",
    "GrowConfig",
    "InferConfig",
    "JudgeConfig",
    "JudgeSettings",
    "LoraSettings",
    "PricesConfig",
    "Resolved",
    "SafeName",
    "Secrets",
    "Section",
    "ServeConfig",
    "ServeLimits",
    "SoftTargets",
    "SplitConfig",
    "StudentConfig",
    "TeacherConfig",
    "field_of",
    "flatten",
    "json_schema",
    "parse_yaml",
    "read_secrets",
    "resolve",
    "take_wish",
    "with_values",
]
