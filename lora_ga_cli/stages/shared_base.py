"""Bases that several of the things to score have in common: each is loaded once, and its adapters are switched."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError, UserError
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.methods.switching import Switched, switching_obstacle
from lora_ga_cli.model.generation import stop_also_at
from lora_ga_cli.report.console import step
from lora_ga_cli.stages.eval_targets import EvalTarget
from lora_ga_cli.stages.inputs import Inputs, base_identity
from lora_ga_cli.stages.trained import check_base
from lora_ga_cli.training.run_files import check_result

OF_PLACE = {"path", "revision", "tokenizer", "num_labels"}
"""Options of the model that do not change the weights of a causal or encoder-decoder base in memory."""


def sharing_obstacle(target: EvalTarget) -> str:
    """Why a target cannot share its base in memory with others, in a few words; empty if it can."""
    config = target.config
    if not target.is_base and target.adapter is None:
        return "it is a complete model"
    if config.model.task == "sequence_classification":
        return "the head of a classifier belongs to one adapter"
    if config.model.new_tokens:
        return "its new tokens have rows of their own"
    return switching_obstacle(target.adapter) if target.adapter is not None else ""


@dataclass
class Group:
    """Targets on one base.

    Args:
        refused: why a run's adapter does not belong on the base, by the target's ``id``; known once the base is loaded.
    """

    targets: list[EvalTarget]
    model: Switched | None = None
    ends: Any = None
    refused: dict[int, RunError] = field(default_factory=dict)


class SharedBases:
    """Loads the models of targets, of which those with an equal base share it. One base is in memory at a time.

    Args:
        targets: all that will be scored.
    """

    def __init__(self, targets: Sequence[EvalTarget]):
        self.targets = list(targets)
        self._groups: dict[str, Group] = {}
        self._keys = {id(target): f"target {number}" for number, target in enumerate(self.targets)}
        self._apart: dict[int, str] = {}
        if len(self.targets) > 1:
            self._find_groups()

    def in_order(self) -> list[EvalTarget]:
        """The targets, with those of one base after one another."""
        first: dict[str, int] = {}
        for number, target in enumerate(self.targets):
            first.setdefault(self._keys[id(target)], number)
        return sorted(self.targets, key=lambda target: first[self._keys[id(target)]])

    def load(self, target: EvalTarget, inputs: Inputs) -> PreTrainedModel | PeftModel:
        """The model of a target, in evaluation mode.

        Raises:
            RunError: the base is not the one that the adapter was trained on.
            DamagedFile: a file of the result is not what was written.
            ModelError
        """
        group = self._groups.get(self._keys[id(target)])
        if group is None or len(group.targets) < 2:
            self._release(None)
            if (reason := self._apart.get(id(target))) is not None:
                step("model", f"{target.label} is loaded apart: {reason}")
            return target.load(inputs)
        if group.model is None:
            self._release(group)
            self._load_base(group, inputs)
        assert group.model is not None
        if id(target) in group.refused:
            raise group.refused[id(target)]
        if target.run is not None:
            check_result(target.run)
        model = group.model.use(target.adapter)
        group.model.base.generation_config = copy.deepcopy(group.ends)
        stop_also_at(group.model.base, inputs.ends.tokens)
        return model

    def _find_groups(self) -> None:
        for target in self.targets:
            if target.config.eval.endpoint.base_url is not None:
                continue
            try:
                reason = sharing_obstacle(target)
                key = "" if reason else base_key(target)
            except (UserError, OSError, ValueError, TypeError, KeyError):  # PEFT's, of a damaged file
                continue  # loading it says what is wrong
            if reason and target.adapter is not None:
                self._apart[id(target)] = reason
            if reason:
                continue
            self._keys[id(target)] = key
            self._groups.setdefault(key, Group([])).targets.append(target)

    def _load_base(self, group: Group, inputs: Inputs) -> None:
        base = inputs.load_model()
        group.ends = copy.deepcopy(getattr(base, "generation_config", None))
        for target in group.targets:  # before modules are replaced in the base
            if target.run is not None:
                try:
                    check_base(base, target.config, target.run)
                except RunError as error:
                    group.refused[id(target)] = error
        group.model = Switched(base, str(inputs.device))
        names = ", ".join(target.label for target in group.targets)
        step("model", f"{inputs.config.model.path} is loaded once, for {names}")

    def _release(self, kept: Group | None) -> None:
        """Frees the bases of other groups."""
        held = [group for group in self._groups.values() if group is not kept and group.model is not None]
        for group in held:
            group.model = None
        if held:
            gc.collect()
            clear_device_cache()


def base_key(target: EvalTarget) -> str:
    """A hash of all that the base in memory depends on."""
    config = target.config
    loaded = config.model.model_dump(mode="json", exclude=OF_PLACE)
    return sha256_json({"base": base_identity(config), "loaded": loaded, "device": config.device})
