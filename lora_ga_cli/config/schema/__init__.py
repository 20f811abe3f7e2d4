"""Every option of loraga: its one spelling, type, unit and bounds; a section of options in each file.

A composed configuration (YAML and command line) is validated against `Config`. The string under a field is its
documentation, and what `loraga recipes options` prints.
"""

from lora_ga_cli.config.schema.dataset import DatasetConfig, MixSource
from lora_ga_cli.config.schema.evaluation import EndpointOptions, EvalOptions
from lora_ga_cli.config.schema.gradient import GradientConfig
from lora_ga_cli.config.schema.method import MethodOptions
from lora_ga_cli.config.schema.model import ModelConfig
from lora_ga_cli.config.schema.run import Config
from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.config.schema.trainer import TrainerConfig
from lora_ga_cli.config.schema.typed import TYPED_SECTIONS, WITHOUT_RULES, WITHOUT_TYPES, TypedSection
from lora_ga_cli.config.schema.values import DataFiles, Fraction, Positive, RegularExpression, Task, Temperature

__all__ = [
    "TYPED_SECTIONS",
    "WITHOUT_RULES",
    "WITHOUT_TYPES",
    "Config",
    "DataFiles",
    "DatasetConfig",
    "EndpointOptions",
    "EvalOptions",
    "Fraction",
    "GradientConfig",
    "MethodOptions",
    "MixSource",
    "ModelConfig",
    "Positive",
    "RegularExpression",
    "Section",
    "Task",
    "Temperature",
    "TrainerConfig",
    "TypedSection",
]
