"""What options take: types with bounds, which several sections use."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.expressions import Expression
from lora_ga_cli.paths import one_name

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def sampling_temperature(value: float) -> float:
    """The same temperature.

    Raises:
        ValueError: it is neither 0 nor in a range in which logits divided by it are finite and differ.
    """
    if value != 0 and not 1e-3 <= value <= 1e3:
        raise ValueError("should be 0, for greedy answers, or from 0.001 to 1000")
    return value


Temperature = Annotated[float, AfterValidator(sampling_temperature)]
Name = Annotated[str, AfterValidator(one_name)]
"""A text that is used in the name of a folder."""
DataFiles = str | list[str] | dict[str, str | list[str]]
Dtype = Literal["float32", "bfloat16", "float16"]
Task = Literal["causal_lm", "seq2seq_lm", "sequence_classification"]
Token = Annotated[str, Field(min_length=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def all_different(names: list[str]) -> list[str]:
    """The same names.

    Raises:
        ValueError: one of them stands there twice.
    """
    repeated = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated!r} twice")
    return names


def _with_line_ends(text: str) -> str:
    # on a command line, a person writes a line end so; Hydra hands the two characters on
    return re.sub(r"(\\?)\\n", lambda found: r"\n" if found[1] else "\n", text)


def _compiles(text: str) -> str:
    try:
        Expression("", text)
    except InvalidInput as error:
        raise ValueError(error.faults[0].what) from None
    return text


RegularExpression = Annotated[str, AfterValidator(_compiles)]
TemplateText = Annotated[str, AfterValidator(_with_line_ends)]
"""A text with ``{column}`` fields, in which ``\\n`` is a line end, and ``\\\\n`` a backslash and an n."""
