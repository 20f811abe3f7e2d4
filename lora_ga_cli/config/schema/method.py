"""The section ``method``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.config.schema.typed import METHOD
from lora_ga_cli.config.schema.values import Name


class MethodOptions(Section):
    """A fine-tuning method. Its class, which ``type`` names, has the other options."""

    type: str = METHOD.default
    """The kind of method. It decides which other ``method`` options there are."""
    name: Name = Field(default_factory=lambda values: values["type"])
    """What run folders and tables call the method. Default: the name of its file in ``method/``."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """The learning rate that suits this method, for a base model of hidden size 512. It is used where
    ``trainer.learning_rate`` is null."""
