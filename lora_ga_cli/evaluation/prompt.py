"""``eval.prompt``: the template around a benchmark's question."""

from __future__ import annotations

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.data.template import Template, TemplateError
from lora_ga_cli.errors import Fault, InvalidInput

OPTION = "eval.prompt"


def prompt_of(options: EvalConfig, default: str) -> str:
    """The prompt that is configured, or else a benchmark's own."""
    return default if options.prompt is None else options.prompt


def question_template(prompt: str, hint: str = "leave it out for the benchmark's own") -> Template:
    """A prompt as the template that it is.

    Raises:
        InvalidInput: it is none, or inserts anything but the question.
    """
    try:
        template = Template(prompt)
    except TemplateError as error:
        raise InvalidInput([Fault(OPTION, str(error))]) from None
    if template.columns != ["question"]:
        what = f"{prompt!r} must have {{question}}, and nothing else to fill in"
        raise InvalidInput([Fault(OPTION, what, hint)])
    return template
