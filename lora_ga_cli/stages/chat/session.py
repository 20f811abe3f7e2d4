"""A chat: messages, commands, and what was said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.errors import InvalidInput, UserError, suggest
from lora_ga_cli.evaluation.tasks.problems import GenerationOptions
from lora_ga_cli.stages.chat.models import Answer, ChatModels, Speaker, Voice
from lora_ga_cli.stages.chat.prompts import Talk
from lora_ga_cli.stages.chat.settings import OF_CHAT, SETTINGS, generation

COMMANDS = {
    "/adapter": ("[NAME]", "lists the adapters, or chooses the one that answers"),
    "/base": ("", "the base answers, without an adapter"),
    "/compare": ("", "the base and the adapter answer side by side, or no longer; the adapter's answers are kept"),
    "/reset": ("", "forgets what was said"),
    "/system": ("[TEXT]", "the system's text, for chat templates; without TEXT there is none"),
    "/set": ("[OPTION=VALUE]", f"shows or changes an option of generation: {', '.join(SETTINGS)}"),
    "/help": ("", "this list; a message that begins with // begins with / for the model"),
    "/quit": ("", "leaves, as does Ctrl-D; Ctrl-C interrupts an answer"),
}
"""The commands, with what follows them and what they do."""


class Display(Protocol):
    """Where a chat is shown."""

    interactive: bool
    """Whether a person can interrupt an answer."""

    def say(self, text: str) -> None:
        """Shows what the program says."""

    def refuse(self, text: str) -> None:
        """Shows why a command or message has no effect."""

    def answers(self, names: Sequence[str]) -> AbstractContextManager[Callable[[int, str], None]]:
        """Shows answers side by side, as they come: the function takes the number of one and a text to add."""


class Session:
    """A chat with some models.

    Args:
        options: how answers are generated.
        display: where everything is shown.
    """

    def __init__(self, models: ChatModels, options: GenerationOptions, display: Display):
        self.models = models
        self.options = options
        self.display = display
        self.speaker: Speaker = next(iter(models.speakers.values()))
        self.base_only = self.comparing = False
        self.talk = Talk()
        self.interrupted = False
        """Whether the user interrupted the last answer."""

    def handle(self, line: str) -> bool:
        """Answers a message, or obeys a command. Returns whether the chat goes on."""
        self.interrupted = False
        if not line.strip():
            return True
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.strip().partition(" ")
            return self._obey(name, rest.strip())
        self._answer(line.removeprefix("/") if line.startswith("//") else line)
        return True

    def state(self) -> str:
        """Who answers and how, in a line."""
        who = f"{self.speaker.name} and its base" if self.comparing else self._name_of(self._voices()[0])
        return f"{who} · {_described(self.options)}"

    def introduce(self) -> None:
        """Shows who answers, and how a message becomes the model's input."""
        self.display.say(self.state())
        self.display.say(self.speaker.prompt.description)

    def _name_of(self, voice: Voice) -> str:
        return "base" if voice is Voice.base else self.speaker.name

    def _voices(self) -> list[Voice]:
        if self.comparing:
            return [Voice.base, Voice.own]
        return [Voice.base if self.base_only else Voice.own]

    def _answer(self, message: str) -> None:
        prompt = self.speaker.prompt
        try:
            row = prompt.row(self.talk, message)
        except BadRow as error:
            self.display.refuse(str(error))
            return
        if not self.models.room(self.speaker, row):
            count = len(row["input_ids"])
            self.display.refuse(f"the model has no position left after the {count:,} tokens of what was said: /reset")
            return
        voices, made = self._voices(), list[Answer]()
        try:
            with self.display.answers([self._name_of(voice) for voice in voices]) as write:
                self.models.answers(self.speaker, voices, row, self.options, write, made)
        except KeyboardInterrupt:
            if not self.display.interactive:
                raise
            self.interrupted = True
        except torch.OutOfMemoryError:
            self.display.refuse("the accelerator's memory is full: /reset, or /set max_new_tokens to a lower number")
            return
        except (UserError, OSError):
            raise
        except Exception as error:  # of the model's code or torch, of this message or these options
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            self.display.refuse(f"no answer: {type(error).__name__}: {line} (another message, /reset, or /set)")
            return
        if self.interrupted:
            self.display.say("interrupted; Ctrl-C again leaves")
        elif any(not answer.ended for answer in made):
            self.display.say(
                f"cut at {self.options.max_new_tokens} tokens (/set max_new_tokens=…), or at the last position"
            )
        if prompt.remembers and made:
            self.talk.turns.append((message, made[-1].text))

    def _obey(self, name: str, rest: str) -> bool:
        if name == "/quit":
            return False
        obey = getattr(self, f"_{name.removeprefix('/')}_command", None)
        if name not in COMMANDS or obey is None:
            self.display.refuse(f"no command {name} ({suggest(name, COMMANDS) or '/help lists them'})")
            return True
        if rest and not COMMANDS[name][0]:
            self.display.refuse(f"{name} takes nothing after it")
            return True
        obey(rest)
        return True

    def _adapter_command(self, name: str) -> None:
        speakers = self.models.speakers
        if not name:
            for speaker in speakers.values():
                mark = "→" if speaker is self.speaker and not self.base_only else " "
                self.display.say(f"{mark} {speaker.name}: {speaker.prompt.description}")
            return
        if name not in speakers:
            self.display.refuse(f"no adapter {name} here ({suggest(name, speakers) or '/adapter lists them'})")
            return
        self.speaker, self.base_only = speakers[name], False
        self.introduce()

    def _base_command(self, _: str) -> None:
        if self._needs_base():
            self.base_only, self.comparing = True, False
            self.display.say(self.state())

    def _compare_command(self, _: str) -> None:
        if self.comparing:
            self.comparing = False
        elif self._needs_base():
            self.comparing, self.base_only = True, False
        self.display.say(self.state())

    def _needs_base(self) -> bool:
        if not self.models.has_base or self.speaker.adapter is None:
            self.display.refuse(f"{self.speaker.name} is a complete model here, without a base beside it")
            return False
        return True

    def _reset_command(self, _: str) -> None:
        self.talk.turns.clear()
        self.display.say("nothing was said yet" + (", but the system's text stays" if self.talk.system else ""))

    def _system_command(self, text: str) -> None:
        if not self.speaker.prompt.remembers:
            self.display.refuse(f"there is no place for a system's text: {self.speaker.prompt.description}")
            return
        self.talk.system = text or None
        self.display.say("the system's text is set" if text else "there is no system's text")

    def _set_command(self, text: str) -> None:
        name, given, value = (part.strip() for part in text.partition("="))
        if text and (name not in SETTINGS or not given):
            near = suggest(name, SETTINGS)
            hint = near if near.startswith("did") and given else f"OPTION=VALUE with one of {', '.join(SETTINGS)}"
            self.display.refuse(f"cannot set {text!r} ({hint})")
            return
        if text:
            try:
                kept = {other: getattr(self.options, other) for other in OF_CHAT}
                self.options = generation(kept | {name: value})
            except InvalidInput as error:
                self.display.refuse(", ".join(fault.what.removeprefix("eval.") for fault in error.faults))
                return
        self.display.say(self.state())

    def _help_command(self, _: str) -> None:
        for name, (what, does) in COMMANDS.items():
            self.display.say(f"{f'{name} {what}':24}{does}")


def _described(options: Any) -> str:
    how = f"temperature {options.temperature:g}" if options.temperature else "greedy (temperature 0)"
    nucleus = f", top_p {options.top_p:g}" if options.temperature and options.top_p < 1 else ""
    return f"{how}{nucleus}, at most {options.max_new_tokens} tokens"
