"""Which characters of a conversation are learned, and how many examples a conversation becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lora_ga_cli.data.chat_template import ChatTemplate
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.messages import ASSISTANT, Conversation, Message
from lora_ga_cli.data.tokens import common_prefix_length

TURN_BY_TURN = "trained turn by turn, as several examples: the chat template writes earlier turns differently"


@dataclass(frozen=True)
class Turn:
    """A turn of the assistant that is learned, in the text of an example.

    Args:
        prompt: the text before it, as for generation.
        start: the first character that is learned; not before the end of the prompt.
        end: the character after the last that is learned, which belongs to the end of the turn.
        reference: what the assistant says.
    """

    prompt: str
    start: int
    end: int
    reference: str


@dataclass(frozen=True)
class Script:
    """The text of an example, and its learned turns in order."""

    text: str
    turns: tuple[Turn, ...]


def scripts(conversation: Conversation, template: ChatTemplate) -> list[Script]:
    """The examples of a conversation.

    What is learned is what the template marks as generated. Without marks, a turn is what the template writes beyond
    the prompt for generation. As long as the template goes on writing after a turn, the next one is in the same
    example; where it writes the turn differently once others follow, another example begins, which shows the model
    what it is shown when it generates.

    Raises:
        BadRow: the template refuses the messages, or writes a turn differently from the prompt that generates it.
    """
    learned = [index for index, is_learned in enumerate(conversation.learned) if is_learned]
    messages, tools = conversation.messages, conversation.tools
    if not learned:
        return [Script(template.text(messages, tools), ())]
    if template.marks_answers(tools) and (marked := _marked(conversation, learned, template)) is not None:
        return [marked]
    made: list[Script] = []
    for index in learned:
        prompt = template.text(messages[:index], tools, for_generation=True)
        text = template.text(messages[: index + 1], tools)
        if not text.startswith(prompt):
            number = conversation.roles[: index + 1].count(ASSISTANT)
            raise BadRow(_not_continued(number, prompt, text))
        end = len(prompt) + template.answer_length(text[len(prompt) :])
        turn = Turn(prompt, len(prompt), end, _said(messages[index], text[len(prompt) : end]))
        earlier: tuple[Turn, ...] = ()
        if made and prompt.startswith(made[-1].text):
            earlier = made.pop().turns
        made.append(Script(text, (*earlier, turn)))
    return made


def _marked(conversation: Conversation, learned: Sequence[int], template: ChatTemplate) -> Script | None:
    """The example that the template's marks describe; None if its marks are not one for each turn of the assistant."""
    messages, tools = conversation.messages[: learned[-1] + 1], conversation.tools
    text, spans = template.marked_text(messages, tools)
    places = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    if len(spans) != len(places):
        return None
    turns = []
    for index, (start, end) in zip(places, spans, strict=True):
        if index not in learned:
            continue
        end += template.end_length(text[start:end], text[end:])
        prompt = text[:start]
        if index == learned[-1]:
            # the last prompt is what evaluation generates from; templates may mark less than the answer
            of_generation = template.text(messages[:index], tools, for_generation=True)
            prompt = of_generation if prompt.startswith(of_generation) else prompt
        turns.append(Turn(prompt, start, end, _said(messages[index], text[start:end])))
    return Script(text, tuple(turns))


def _said(message: Message, written: str) -> str:
    """What a person compares with a generated answer: its text, or what the template writes for a call of tools."""
    return message.get("content") or written.strip()


def _not_continued(number: int, prompt: str, text: str) -> str:
    same = common_prefix_length(prompt, text)
    return (
        f"the chat template writes turn {number} of the assistant differently from the prompt that generates it: "
        f"{prompt[same : same + 40]!r} becomes {text[same : same + 40]!r} (dataset.chat_template=FILE takes another "
        "template)"
    )
