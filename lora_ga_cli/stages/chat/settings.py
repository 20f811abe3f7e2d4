"""The options of generation in a chat, with the checks that they have in `loraga eval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_ga_cli.config.options import options_of_class, unfitting
from lora_ga_cli.config.overrides import COMMAND_LINE
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.evaluation.tasks.problems import GenerationOptions

SETTINGS = ("temperature", "top_p", "max_new_tokens")
"""Options of generation that can be changed while the program runs."""
OF_CHAT = (*SETTINGS, "prompt")
"""The ``eval`` options that a chat has."""


def generation(values: Mapping[str, Any]) -> GenerationOptions:
    """The options of generation with these values, and the defaults of the others.

    Args:
        values: by name; numbers may be texts.

    Raises:
        InvalidInput: all of them that do not fit.
    """
    known = options_of_class(GenerationOptions, "eval")
    problems = [unfitting(("eval", name), value, known) for name, value in values.items()]
    if faults := [Fault(COMMAND_LINE, problem) for problem in problems if problem is not None]:
        raise InvalidInput(faults)
    return GenerationOptions(task="chat", **values)
