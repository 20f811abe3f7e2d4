"""The models of a chat: a base with the adapters of several runs, or one model of another kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lora_ga_cli.config.overrides import COMMAND_LINE, parse_overrides
from lora_ga_cli.errors import Fault, InvalidInput, RunError, UserError
from lora_ga_cli.evaluation.continuation import continuations, end_tokens, positions_left, without_end
from lora_ga_cli.evaluation.streaming import AnswerStream
from lora_ga_cli.evaluation.tasks.problems import GenerationOptions
from lora_ga_cli.methods.switching import Switched, takes_mixed_batches
from lora_ga_cli.model.generation import stop_also_at
from lora_ga_cli.model.loading import guess_task
from lora_ga_cli.report.console import step
from lora_ga_cli.stages.chat.prompts import ChatPrompt, chat_prompt
from lora_ga_cli.stages.chat.settings import OF_CHAT
from lora_ga_cli.stages.eval_targets import EvalTarget, find_target
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.shared_base import base_key, sharing_obstacle
from lora_ga_cli.stages.trained import check_base

BASE = "__base__"
"""PEFT's name for no adapter, in a batch with rows for several."""


class Voice(Enum):
    """Who answers."""

    base = "the base, without an adapter"
    own = "the model that was chosen"


@dataclass(frozen=True)
class Speaker:
    """A model that can be chosen.

    Args:
        name: as the user names it.
        adapter: the folder of its adapter; None for a complete model.
    """

    name: str
    adapter: Path | None
    inputs: Inputs
    prompt: ChatPrompt


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Args:
        text: its text.
        ended: whether the model ended it, and not the longest length.
    """

    text: str
    ended: bool


class ChatModels:
    """Models in memory that answer messages.

    Args:
        speakers: by name; the first one is chosen at the beginning.
        model: the base with switched adapters; or a complete model; or PEFT's model of another kind.
    """

    def __init__(self, speakers: dict[str, Speaker], model: Switched | Any):
        self.speakers = speakers
        self._model: Any = model
        self._switched = model if isinstance(model, Switched) else None
        base: Any = model.base if isinstance(model, Switched) else model
        self._ends: Any = copy.deepcopy(getattr(base, "generation_config", None))

    @property
    def has_base(self) -> bool:
        """Whether the base can answer without an adapter."""
        if self._switched is not None:
            return any(speaker.adapter is not None for speaker in self.speakers.values())
        return isinstance(self._model, PeftModel)

    def mixes(self, speaker: Speaker) -> bool:
        """Whether the base and the speaker's adapter answer in one batch."""
        return self._switched is not None and speaker.adapter is not None and takes_mixed_batches(speaker.adapter)

    def room(self, speaker: Speaker, row: dict[str, Any]) -> int:
        """How many tokens an answer to a row can have before the model's positions end."""
        with self._active(speaker, Voice.own) as model:
            return positions_left(model, speaker.prompt.task, row)  # type: ignore[arg-type]

    def answers(
        self,
        speaker: Speaker,
        voices: Sequence[Voice],
        row: dict[str, Any],
        options: GenerationOptions,
        write: Callable[[int, str], None],
        partial: list[Answer],
    ) -> None:
        """Answers to a row.

        Args:
            voices: who answers, in this order.
            write: called with the number of the voice and the text that was added to its answer.
            partial: gets the answers, also where the work is interrupted.
        """
        if len(voices) > 1 and self.mixes(speaker):
            assert self._switched is not None
            assert speaker.adapter is not None
            name = self._switched.add(speaker.adapter)
            names = [BASE if voice is Voice.base else name for voice in voices]
            with self._active(speaker, Voice.own) as model:
                self._generate(model, speaker, row, options, write, partial, adapter_names=names)
            return
        for number, voice in enumerate(voices):

            def write_this(_: int, text: str, number: int = number) -> None:
                write(number, text)

            with self._active(speaker, voice) as model:
                self._generate(model, speaker, row, options, write_this, partial)

    def _generate(
        self,
        model: Any,
        speaker: Speaker,
        row: dict[str, Any],
        options: GenerationOptions,
        write: Callable[[int, str], None],
        partial: list[Answer],
        **more: Any,
    ) -> None:
        prompt, count = speaker.prompt, len(more.get("adapter_names", [None]))
        last = end_tokens(model, prompt.tokenizer, prompt.ends)
        # answers of one batch have one limit, or they would be generated one by one
        limit = min(options.max_new_tokens, positions_left(model, prompt.task, row))  # type: ignore[arg-type]
        stream = AnswerStream(prompt.tokenizer, count, last, write, prompt.ends)
        try:
            continuations(
                model,
                prompt.tokenizer,
                prompt.task,  # type: ignore[arg-type]
                [row] * count,
                max_new_tokens=limit,
                temperature=options.temperature,
                top_p=options.top_p,
                ends=prompt.ends,
                streamer=stream,
                **more,
            )
        finally:
            stream.end()
            partial += [Answer(without_end(stream.text(n), prompt.ends), stream.ended[n]) for n in range(count)]

    @contextmanager
    def _active(self, speaker: Speaker, voice: Voice) -> Iterator[Any]:
        if self._switched is not None:
            model = self._switched.use(speaker.adapter if voice is Voice.own else None)
            self._switched.base.generation_config = copy.deepcopy(self._ends)
            stop_also_at(self._switched.base, speaker.inputs.ends.tokens)
            yield model
        elif voice is Voice.base:
            with self._model.disable_adapter():
                yield self._model
        else:
            yield self._model


def generation_options(options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates the options of generation from others.

    Args:
        options: overrides on the command line.

    Returns:
        The others, and the values of those under ``eval``.

    Raises:
        InvalidInput: an ``eval`` option that a chat does not have.
    """
    others = [item for item in options if not item.startswith(("eval.", "eval="))]
    overrides, faults = parse_overrides([item for item in options if item not in others])
    chosen = {}
    for override in overrides:
        section, _, name = override.key_or_group.partition(".")
        if name in OF_CHAT:
            chosen[name] = override.value()
        else:
            hint = "here: " + ", ".join(f"eval.{option}" for option in OF_CHAT)
            faults.append(Fault(COMMAND_LINE, f"{section}{'.' if name else ''}{name} is for loraga eval", hint))
    if faults:
        raise InvalidInput(faults)
    return others, chosen


def load_models(words: Sequence[str], options: Sequence[str], template: str | None) -> ChatModels:
    """Loads what the words name: one model, or adapters on one base.

    Args:
        words: runs, adapters or models.
        options: changes to their configurations, as for `find_target`.
        template: ``eval.prompt``.

    Raises:
        InvalidInput: all that is wrong with what is named.
        RunError, ModelError
    """
    targets, faults = [], []
    for text in words:
        try:
            target = find_target(text, options, to_score=False)
        except InvalidInput as error:
            faults += error.faults
            continue
        except RunError as error:
            faults.append(Fault(COMMAND_LINE, str(error)))
            continue
        if _classifies(target):
            what = "it is a classifier, which gives classes and no text"
            faults.append(Fault(text, what, f"loraga eval {text} scores it"))
        targets.append(target)
    faults = faults or _apart(words, targets)
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))
    names = [target.name for target in targets]
    names = names if len(set(names)) == len(names) else list(words)
    speakers = {}
    for name, target in zip(names, targets, strict=True):
        inputs = prepare_inputs(target.config, splits=(), label_names=target.label_names, to_train=False)
        prompt = chat_prompt(inputs, is_run=target.run is not None, template=template, name=name)
        speakers[name] = Speaker(name, target.adapter, inputs, prompt)
    first = speakers[names[0]]
    if len(targets) == 1 and (sharing_obstacle(targets[0]) or targets[0].adapter is None):
        return ChatModels(speakers, targets[0].load(first.inputs))
    base = first.inputs.load_model()
    for target in targets:
        if target.run is not None:
            check_base(base, target.config, target.run)
    switched = Switched(base, str(first.inputs.device))
    for target in targets:
        if target.adapter is not None:
            switched.add(target.adapter)
    if len(targets) > 1:
        step("model", f"{first.inputs.config.model.path} is loaded once, for {', '.join(names)}")
    torch.manual_seed(first.inputs.config.seed)
    return ChatModels(speakers, switched)


def _classifies(target: EvalTarget) -> bool:
    """Whether a model gives classes; one that no run has trained is looked up in its configuration."""
    model = target.config.model
    guessed = target.is_base and Path(model.path).is_dir() and guess_task(model.path) == "sequence_classification"
    return guessed or model.task == "sequence_classification"


def _apart(words: Sequence[str], targets: Sequence[EvalTarget]) -> list[Fault]:
    """Faults for models that cannot be on one base with the others."""
    if len(targets) < 2:
        return []
    faults, bases = [], {}
    for text, target in zip(words, targets, strict=True):
        if reason := sharing_obstacle(target):
            faults.append(Fault(text, f"it cannot share a base with others: {reason}", f"loraga chat {text} alone"))
            continue
        try:
            bases[text] = base_key(target), target.config.model.path
        except (UserError, OSError) as error:
            faults.append(Fault(text, str(error)))
    if bases:
        first, (key, path) = next(iter(bases.items()))
        faults += [
            Fault(text, f"its base is {other_path}, and that of {first} is {path}", "a chat has one base")
            for text, (other, other_path) in bases.items()
            if other != key
        ]
    return faults
