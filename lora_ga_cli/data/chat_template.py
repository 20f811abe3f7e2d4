"""A tokenizer's chat template: texts of conversations, what it has a place for, and what it writes after an answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.messages import ASSISTANT, CALLS, Conversation, Message
from lora_ga_cli.data.tokens import plain_tokens
from lora_ga_cli.errors import Fault
from lora_ga_cli.paths import resolve_path

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import DatasetConfig

OPTION = "dataset.chat_template"
PROBE = "Probe7391"
"""A text that no template writes by itself and none changes."""
SYSTEM_FIRST = "with the system's text in front of the first user's: the chat template has no system role"
DEVELOPER_AS_SYSTEM = "with the developer's text as the system's: the chat template has no developer role"
TOOLS_UNSHOWN = "with tools that the model is not shown: the chat template has no place for them"


class ChatTemplate:
    """The chat template of a tokenizer that has one.

    Args:
        tokenizer: a tokenizer of transformers; it is not changed.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._words: dict[str, list[str]] = {}
        self._roles: dict[str, bool] = {}

    def text(self, messages: Sequence[Message], tools: Any = None, *, for_generation: bool = False) -> str:
        """The text of a conversation.

        Args:
            for_generation: it ends where the assistant's next turn begins.

        Raises:
            BadRow: the template refuses the messages.
        """

        def render(some: list[Message]) -> str:
            text: str = self._tokenizer.apply_chat_template(
                some, tools=tools, tokenize=False, add_generation_prompt=for_generation
            )
            return text

        return _tolerant(render, messages)

    def marked_text(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the first and last character of each part that ``{% generation %}`` marks.

        Raises:
            BadRow: the template refuses the messages.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        def render(some: list[Message]) -> tuple[str, list[tuple[int, int]]]:
            rendered: Any = render_jinja_template(
                conversations=[some],
                tools=tools,
                chat_template=self._source(tools),
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
            (text,), (spans,) = rendered
            return text, [(start, end) for start, end in spans if start < end]

        return _tolerant(render, messages)

    def marks_answers(self, tools: Any = None) -> bool:
        """Whether the template marks what the assistant generates, by ``{% generation %}``."""
        words = self._words_of(self._source(tools))
        return ("{%", "generation") in pairwise(words)

    def fitted(self, conversation: Conversation) -> tuple[Conversation, list[str]]:
        """A conversation with the roles that the template has, and what was changed for that, for people."""
        messages, notes = [], []
        learned = []
        waiting: list[str] = []
        for message, is_learned in zip(conversation.messages, conversation.learned, strict=True):
            role = message["role"]
            if role == "developer" and not self._takes(role) and self._takes("system"):
                message = {**message, "role": "system"}
                notes.append(DEVELOPER_AS_SYSTEM)
            elif role in ("system", "developer") and not self._takes(role):
                waiting.append(message["content"])
                notes.append(SYSTEM_FIRST)
                continue
            if waiting and role != "user":
                messages.append({"role": "user", "content": "\n\n".join(waiting)})
                learned.append(False)
                waiting = []
            elif waiting:
                message = {**message, "content": "\n\n".join([*waiting, message["content"]])}
                waiting = []
            messages.append(message)
            learned.append(is_learned)
        if conversation.tools and "tools" not in self._words_of(self._source(conversation.tools)):
            notes.append(TOOLS_UNSHOWN)
        return replace(conversation, messages=messages, learned=learned), list(dict.fromkeys(notes))

    def answer_length(self, text: str) -> int:
        """How many characters of what the template writes for an assistant's turn are learned: all up to and including
        the token that ends it, or else the text that does."""
        end = max((text.rfind(token) + len(token) for token in self._special if token in text), default=0)
        if end and not text[end:].strip():
            return end
        mark = self.ends.text
        place = text.rfind(mark) if mark else -1
        return place + len(mark) if place >= 0 and not text[place + len(mark) :].strip() else len(text)

    def end_length(self, text: str, rest: str) -> int:
        """How many characters of ``rest`` belong to the end of a turn that is marked as ``text``; 0 if it has its end.

        Args:
            rest: what the template writes after it.
        """
        mark = self._end.strip()
        if not mark or text.rstrip().endswith(mark):
            return 0
        space = len(rest) - len(rest.lstrip())
        return space + len(mark) if rest[space:].startswith(mark) else 0

    @cached_property
    def ends(self) -> Ends:
        """What ends an answer: the first special token after it, or else the text that the template writes there, which
        may be a token that was added to the vocabulary."""
        end = self._end
        special = self._tokenizer.convert_tokens_to_ids([token for token in self._special if end.endswith(token)][:1])
        if special:
            return Ends((int(special[0]),))
        (ids,) = plain_tokens(self._tokenizer, [end])
        # an ordinary token, such as a full stop, occurs inside answers too
        added = len(ids) == 1 and ids[0] in self._tokenizer.added_tokens_decoder
        return Ends((ids[0],)) if added else Ends(text=end)

    @cached_property
    def learned_header(self) -> str:
        """What the template writes before an answer and not at the end of the prompt for generation, where it has no
        such prompt: it is learned with the answer. Empty if there is nothing."""
        asked = [{"role": "user", "content": "a"}]
        try:
            before, prompt = self.text(asked), self.text(asked, for_generation=True)
            text = self.text([*asked, {"role": ASSISTANT, "content": PROBE}])
        except BadRow:
            return ""
        if before != prompt or not text.startswith(prompt) or PROBE not in text or self.marks_answers():
            return ""
        return text[len(prompt) : text.rfind(PROBE)].strip()

    @cached_property
    def _end(self) -> str:
        """The template's text after an answer, up to and including the first special token; without one, all of it but
        the white space at its end."""
        messages = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": PROBE}]
        try:
            text = self.text(messages)
        except BadRow:
            return ""
        after = text[text.rfind(PROBE) + len(PROBE) :] if PROBE in text else ""
        places = [(after.find(token), -len(token)) for token in self._special if token in after]
        if not places:
            return after.rstrip()
        start, length = min(places)
        return after[: start - length]

    @cached_property
    def _special(self) -> list[str]:
        """The texts of special tokens, longest first."""
        added = self._tokenizer.added_tokens_decoder.values()
        tokens = {*self._tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        return sorted(tokens, key=lambda token: (-len(token), token))

    def _takes(self, role: str) -> bool:
        """Whether the template writes what a first message of this role says."""
        if role not in self._roles:
            try:
                text = self.text([{"role": role, "content": PROBE}, {"role": "user", "content": "a"}])
            except BadRow:
                text = ""
            self._roles[role] = PROBE in text
        return self._roles[role]

    def _source(self, tools: Any) -> str:
        source: str = self._tokenizer.get_chat_template(tools=tools)
        return source

    def _words_of(self, source: str) -> list[str]:
        """The names in a template's code, and ``{%`` where a statement begins; comments and texts are left out."""
        import jinja2

        if source not in self._words:
            try:
                found = [(kind, value) for _, kind, value in jinja2.Environment().lex(source)]
            except jinja2.TemplateSyntaxError:
                found = []
            kinds = {"name": lambda value: value, "block_begin": lambda value: "{%"}
            self._words[source] = [kinds[kind](value) for kind, value in found if kind in kinds]
        return self._words[source]


def left_out(conversation: Conversation, texts: Sequence[str]) -> str:
    """What is said of a conversation of which no text holds a part, for people; empty if all is there.

    Looked for are the texts and names of messages, and of the assistant's learned messages every text that they have
    besides, such as ``reasoning_content``, and their calls with the arguments. White space and how JSON escapes a text
    do not count. Of the assistant, only what is learned is looked for: templates drop the reasoning of its earlier
    turns on purpose.
    """
    together = "".join("".join(text.split()) for text in texts)

    def is_there(content: str) -> bool:
        escaped = json.dumps(content, ensure_ascii=False)[1:-1]
        return any("".join(form.split()) in together for form in (content, escaped))

    missing = []
    for message, learned in zip(conversation.messages, conversation.learned, strict=True):
        role = message["role"]
        if not learned and role == ASSISTANT:
            continue
        if not is_there(message.get("content", "")):
            missing.append(f"of the {role}")
        keys = sorted(message.keys() - {"role", "content"}) if learned else ["name"]
        missing += [
            f"{key} of the {role}" for key in keys if isinstance(text := message.get(key), str) and not is_there(text)
        ]
        for call in message.get(CALLS, []) if learned else []:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            if not is_there(name):
                missing.append(f"the call of {name}")
            elif not all(map(is_there, _texts(arguments))):
                missing.append(f"arguments of the call of {name}")
    return f"of which the chat template leaves out a part ({', '.join(dict.fromkeys(missing))})" if missing else ""


def _texts(value: Any) -> Iterator[str]:
    """The texts and numbers in the arguments of a call; how a template writes true and false is not known."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def with_chat_template(config: DatasetConfig, tokenizer: Any) -> Any:
    """The tokenizer with the template of ``dataset.chat_template``; as it is if there is none that can be read."""
    source, faults = _read(config)
    if source is None or faults or tokenizer.chat_template == source:
        return tokenizer
    changed = copy.copy(tokenizer)
    changed.chat_template = source
    return changed


def chat_template_faults(config: DatasetConfig, tokenizer: Any) -> list[Fault]:
    """What is wrong with the file that ``dataset.chat_template`` names."""
    import jinja2

    source, faults = _read(config)
    if source is None or faults:
        return faults
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=source, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        return [Fault(OPTION, f"{config.chat_template}:{error.lineno}: {error.message}", "correct the template")]
    except (jinja2.TemplateError, TypeError, ValueError):
        pass  # which messages a template takes is seen row by row
    return []


def _read(config: DatasetConfig) -> tuple[str | None, list[Fault]]:
    if config.chat_template is None:
        return None, []
    try:
        source = resolve_path(config.chat_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        return None, [Fault(OPTION, f"{config.chat_template} cannot be read: {reason}", "name a Jinja file")]
    if not source.strip():
        return None, [Fault(OPTION, f"{config.chat_template} is empty", "name a Jinja file")]
    return source, []


def _tolerant(render: Any, messages: Sequence[Message]) -> Any:
    """A rendering of messages. Where a message only calls tools, its text is absent, or else empty.

    Raises:
        BadRow: the template refuses the messages both ways.
    """
    from jinja2 import TemplateError

    filled = [{"content": "", **message} for message in messages]
    ways = [list(messages)] if filled == list(messages) else [list(messages), filled]
    for way in ways:
        try:
            return render(way)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = error
    raise BadRow(f"the chat template refuses these messages: {reason}") from reason
