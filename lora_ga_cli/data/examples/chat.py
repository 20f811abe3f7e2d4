"""Chats: messages rendered by the tokenizer's template, with loss on the assistant's turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.chat_template import ChatTemplate, chat_template_faults, left_out
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.examples.base import Example, Form
from lora_ga_cli.data.faults import EmptyAnswer
from lora_ga_cli.data.messages import ASSISTANT, CALLS, Conversation, read_conversation
from lora_ga_cli.data.tokens import MASKED, extended_tokens, plain_tokens
from lora_ga_cli.data.turns import TURN_BY_TURN, Script, scripts
from lora_ga_cli.errors import Fault
from lora_ga_cli.registry import EXAMPLES

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig
    from lora_ga_cli.data.source import Row

TOOLS = "tools"
"""The column of tools that is read where there is one and no option names another."""


@dataclass(frozen=True)
class ChatRow:
    """A row as it was read: its examples, and what is to be said of it."""

    scripts: list[Script]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class TokenTurn:
    """A learned turn of the assistant among tokens.

    Args:
        length: the number of tokens of its prompt.
        prompt: the text before it, as for generation.
        reference: what the assistant says.
    """

    length: int
    prompt: str
    reference: str


@EXAMPLES.register("chat")
class Chat(Form):
    """A column of messages; the assistant's turns are learned, each with the token that ends it.

    `data.messages` has the spellings that are read, and `data.turns` which characters are learned. What comes after the
    last learned turn is left out. ``prompt`` and ``reference`` are those of the last learned turn.
    """

    tasks = ("causal_lm",)
    required = ("messages",)
    optional = ("label_names", "tools", "learn_turns", "chat_template")

    def __init__(self, config: DatasetConfig, tokenizer: Any, label_names: Sequence[str] | None = None):
        assert config.messages is not None
        super().__init__(config, tokenizer, label_names)
        self._column = config.messages
        self._tools = config.tools or TOOLS
        self._template = ChatTemplate(tokenizer)

    @classmethod
    def faults(cls, config: DatasetConfig, tokenizer: Any) -> list[Fault]:
        if config.chat_template is not None:
            return chat_template_faults(config, tokenizer)
        if tokenizer.chat_template:
            return []
        hint = (
            "take a chat model, or its tokenizer by model.tokenizer=NAME, or a template by dataset.chat_template=FILE, "
            "or give dataset.prompt and dataset.answer"
        )
        return [Fault("dataset.messages", "the tokenizer has no chat template", hint)]

    @classmethod
    def columns_if_present(cls, config: DatasetConfig) -> Sequence[str]:
        return () if config.tools is not None else (TOOLS,)

    @classmethod
    def ends(cls, config: DatasetConfig, tokenizer: Any) -> Ends:
        return ChatTemplate(tokenizer).ends if tokenizer.chat_template else super().ends(config, tokenizer)

    @classmethod
    def warnings(cls, config: DatasetConfig, tokenizer: Any) -> list[str]:
        header = ChatTemplate(tokenizer).learned_header if tokenizer.chat_template else ""
        found = []
        if header:
            found = [
                f"the chat template has no prompt for generation, so the model learns to write {header!r} before its "
                "answers (dataset.chat_template=FILE takes a template with add_generation_prompt)"
            ]
        ends = cls.ends(config, tokenizer)
        if ends.tokens:
            return found
        way = "dataset.chat_template=FILE takes a template that ends turns with a token"
        if not ends.text:
            return [
                *found,
                f"the chat template writes nothing after the assistant's turns: no end of an answer is learned ({way})",
            ]
        return [
            *found,
            f"the chat template ends the assistant's turns with the text {ends.text!r}, which is no token of this "
            f"tokenizer: loraga eval stops there, and other programs need it as a stop string ({way})",
        ]

    def read(self, row: Row) -> ChatRow:
        conversation = read_conversation(row.get(self._column), self._column, row.get(self._tools), self._tools)
        conversation = self._chosen(conversation)
        if not self.config.allow_empty_answers:
            _refuse_empty(conversation)
        conversation, notes = self._template.fitted(conversation)
        made = scripts(conversation, self._template)
        if len(made) > 1:
            notes.append(TURN_BY_TURN)
        read = _up_to_last_learned(conversation)
        if not self.config.allow_empty_answers:
            self._refuse_turns_of_nothing(made)
        if missing := left_out(read, [script.text for script in made]):
            notes.append(missing)
        return ChatRow(made, tuple(notes))

    def _refuse_turns_of_nothing(self, made: Sequence[Script]) -> None:
        """Refuses a learned turn of which the template writes nothing but its end.

        Raises:
            EmptyAnswer
        """
        ends = self._template.ends
        nothing = {"", ends.text.strip(), *self.tokenizer.convert_ids_to_tokens(ends.tokens)}
        if any(turn.reference.strip() in nothing for script in made for turn in script.turns):
            raise EmptyAnswer(
                "a turn of the assistant is nothing but a call of a tool, which the chat template leaves out, so it "
                "would teach to answer nothing (dataset.chat_template=FILE takes another template)"
            )

    def _chosen(self, conversation: Conversation) -> Conversation:
        """The conversation with only those turns learned that ``dataset.learn_turns`` chooses."""
        if self.config.learn_turns != "last":
            return conversation
        roles = conversation.roles
        last = len(roles) - 1 - roles[::-1].index(ASSISTANT)
        return replace(conversation, learned=[x and i == last for i, x in enumerate(conversation.learned)])

    def examples(self, parts: Sequence[ChatRow]) -> list[list[Example]]:
        return [
            [self._example(script, part.notes if number == 0 else ()) for number, script in enumerate(part.scripts)]
            for part in parts
        ]

    def tokenize(self, parts: Sequence[ChatRow]) -> list[Example]:
        return [example for of_row in self.examples(parts) for example in of_row]

    def _example(self, script: Script, notes: tuple[str, ...]) -> Example:
        borders = sorted({place for turn in script.turns for place in (len(turn.prompt), turn.start, turn.end)})
        borders = borders or [len(script.text)]
        counts = {0: 0}
        ids: list[int] = []
        before = 0
        for border, together in zip(
            borders, plain_tokens(self.tokenizer, [script.text[:border] for border in borders]), strict=True
        ):
            ids = extended_tokens(self.tokenizer, ids, script.text[before:border], together) if ids else together
            counts[border], before = len(ids), border
        labels = [MASKED] * len(ids)
        for turn in script.turns:
            start, end = counts[turn.start], counts[turn.end]
            labels[start:end] = ids[start:end]
        turns = [TokenTurn(counts[len(turn.prompt)], turn.prompt, turn.reference) for turn in script.turns]
        row = {"input_ids": ids, "labels": labels, "length": len(ids)}
        return self._with_last_turn(Example(row, keep=turns, notes=notes))

    def _with_last_turn(self, example: Example) -> Example:
        # of a row that was truncated, the last turn that has a token left
        turns = [turn for turn in example.keep if turn.length < example.row["length"]] or example.keep[:1]
        turn = turns[-1] if turns else TokenTurn(0, "", "")
        last = {"prompt_length": turn.length, "prompt": turn.prompt, "reference": turn.reference}
        return replace(example, row={**example.row, **last})

    def truncate(self, example: Example, max_length: int) -> Example:
        """The first tokens; ``prompt`` and ``reference`` are those of the last turn that has a token left."""
        return self._with_last_turn(super().truncate(example, max_length))


def _up_to_last_learned(conversation: Conversation) -> Conversation:
    """The messages that the model reads or learns."""
    count = max((number for number, learned in enumerate(conversation.learned, start=1) if learned), default=0)
    return replace(conversation, messages=conversation.messages[:count], learned=conversation.learned[:count])


def _refuse_empty(conversation: Conversation) -> None:
    for number, (message, learned) in enumerate(zip(conversation.messages, conversation.learned, strict=True), start=1):
        if learned and CALLS not in message and not message["content"].strip():
            raise EmptyAnswer(f"message {number}, of the assistant, is empty, so it would teach to answer nothing")
