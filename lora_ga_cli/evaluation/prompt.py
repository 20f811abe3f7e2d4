"""How a benchmark's question becomes the model's input: ``eval.prompt``, or the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_ga_cli.data.template import Template, TemplateError
from lora_ga_cli.errors import Fault, InvalidInput

OPTION = "eval.prompt"


def question_template(prompt: str, hint: str = "leave it out to use the benchmark's default") -> Template:
    """The template of a prompt.

    Raises:
        InvalidInput: the prompt is not a template, or has other fields than the question.
    """
    try:
        template = Template(prompt)
    except TemplateError as error:
        raise InvalidInput([Fault(OPTION, str(error))]) from None
    if template.columns != ["question"]:
        what = f"{prompt!r} must have {{question}}, and nothing else to fill in"
        raise InvalidInput([Fault(OPTION, what, hint)])
    return template


def check_conversation(prompt: str | None, tokenizer: Any) -> None:
    """Checks that conversations can be written, by ``eval.prompt`` or else by the tokenizer.

    Raises:
        InvalidInput: a prompt without the question, or neither a prompt nor a chat template.
    """
    hint = "in bash, $'eval.prompt=\"### Instruction:\\n{question}\\n\\n### Response:\\n\"'"
    if prompt is not None:
        question_template(prompt, hint)
    elif getattr(tokenizer, "chat_template", None) is None:
        what = "the model's tokenizer has no chat template, so a template for the conversation must be given"
        raise InvalidInput([Fault(OPTION, what, hint)])


def conversation(turns: Sequence[str], answers: Sequence[str], prompt: str | None, tokenizer: Any) -> str:
    """The model's input for the last turn of a conversation.

    Args:
        answers: the answers to all turns but the last.
        prompt: template of every turn; None uses the tokenizer's chat template.
    """
    if prompt is not None:
        template = Template(prompt)
        questions = [template.fill({"question": turn}) for turn in turns]
        answered = [f"{question}{answer.strip()}\n\n" for question, answer in zip(questions, answers, strict=False)]
        return "".join([*answered, questions[-1]])
    messages: list[dict[str, str]] = []
    for turn, answer in zip(turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": turns[-1]})
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text
