"""How a message becomes the model's input, as in the rows that it was trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lora_ga_cli.config.row_forms import is_complete
from lora_ga_cli.data.chat_template import ChatTemplate
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.messages import Conversation, Message
from lora_ga_cli.data.template import Template
from lora_ga_cli.data.tokens import plain_tokens, prompt_tokens
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.evaluation.prompt import question_template
from lora_ga_cli.stages.inputs import Inputs

PROMPT_HINT = "eval.prompt='\"{question}\"' with the text around a message"


@dataclass
class Talk:
    """What was said so far.

    Args:
        system: the system's text; None where there is none.
        turns: messages of the user, each with the answer to it.
    """

    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)


class ChatPrompt(ABC):
    """Makes the model's input of a message.

    Args:
        tokenizer: the model's.
        task: the model's task.
        ends: what ends an answer.
    """

    description: str
    """How the input is made, for people."""
    remembers: ClassVar[bool] = False
    """Whether the input has the earlier turns, and the system's text."""

    def __init__(self, tokenizer: Any, task: str, ends: Ends):
        self.tokenizer = tokenizer
        self.task = task
        self.ends = ends

    @abstractmethod
    def text(self, talk: Talk, message: str) -> str:
        """The model's input.

        Raises:
            BadRow: the message cannot be written.
        """

    def row(self, talk: Talk, message: str) -> dict[str, Any]:
        """The tokens of the input, as `evaluation.continuation.continuations` takes them.

        Raises:
            BadRow: the message cannot be written, or gives no token.
        """
        text = self.text(talk, message)
        if self.task == "seq2seq_lm":
            return {"input_ids": self.tokenizer([text], verbose=False)["input_ids"][0]}
        (ids,) = self._tokens(text)
        if not ids:
            raise BadRow("the message has no token")
        return {"input_ids": ids, "prompt_length": len(ids)}

    def _tokens(self, text: str) -> list[list[int]]:
        return prompt_tokens(self.tokenizer, [text])


class ByChatTemplate(ChatPrompt):
    """The tokenizer's chat template writes the conversation."""

    remembers = True
    description = "the tokenizer's chat template writes the conversation"

    def text(self, talk: Talk, message: str) -> str:
        template = ChatTemplate(self.tokenizer)
        messages: list[Message] = [{"role": "system", "content": talk.system}] if talk.system else []
        for asked, answered in talk.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": message})
        conversation, _ = template.fitted(Conversation(messages, [False] * len(messages)))
        return template.text(conversation.messages, for_generation=True)

    def _tokens(self, text: str) -> list[list[int]]:
        return plain_tokens(self.tokenizer, [text])


class ByPrompt(ChatPrompt):
    """A template with one place for the message.

    Args:
        template: the template.
        column: the column that the message fills.
    """

    def __init__(self, tokenizer: Any, task: str, ends: Ends, template: str, column: str):
        super().__init__(tokenizer, task, ends)
        self._template, self._column = Template(template), column
        self.description = (
            f"each message is put into the template {template!r} in the place of {{{column}}}; the model does not see "
            "earlier messages"
        )

    def text(self, talk: Talk, message: str) -> str:
        return self._template.fill({self._column: message})


class AsItIs(ChatPrompt):
    """The model goes on with the message."""

    description = "the model continues each message as it stands, without the messages before it"

    def text(self, talk: Talk, message: str) -> str:
        return message


def chat_prompt(inputs: Inputs, *, is_run: bool, template: str | None, name: str) -> ChatPrompt:
    """How a model is asked: by ``eval.prompt``, else as the rows of its run were written, else by the tokenizer's chat
    template, else by the message alone.

    Args:
        template: ``eval.prompt``.
        name: of the model, for errors.

    Raises:
        InvalidInput: the prompt of the run has several columns that a message would have to fill.
    """
    dataset, task = inputs.config.dataset, inputs.config.model.task
    of_model = (inputs.tokenizer, task, inputs.ends)
    if template is not None:
        question_template(template)
        return ByPrompt(*of_model, template, "question")
    if is_run and is_complete(dataset) and dataset.messages is None:
        if dataset.prompt is None:
            return AsItIs(*of_model)
        return ByPrompt(*of_model, dataset.prompt, _column(dataset.prompt, name))
    if getattr(inputs.tokenizer, "chat_template", None) is not None and task == "causal_lm":
        ends = inputs.ends if is_run else ChatTemplate(inputs.tokenizer).ends
        return ByChatTemplate(inputs.tokenizer, task, ends)
    return AsItIs(*of_model)


def _column(template: str, name: str) -> str:
    """The first column of a template that suffices to fill it.

    Raises:
        InvalidInput: there is none.
    """
    parsed = Template(template)
    columns: Sequence[str] = parsed.columns
    for column in columns:
        try:
            parsed.fill({column: "a"})
        except BadRow:
            continue
        return column
    what = f"{name} was trained with a prompt of several columns ({', '.join(columns)}), and a message is one text"
    raise InvalidInput([Fault("dataset.prompt", what, PROMPT_HINT)])
