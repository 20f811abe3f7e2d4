"""What a fine-tuning method is: a class that holds everything about it, in one file, with one file in ``conf/method``.

The methods of `Method` stand in the order in which a run calls them. What is written here suits a method that trains
weights of the model itself; `lora.py` overrides it for PEFT's adapters, and `custom.py` for adapters that PEFT does not
have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel, TaskType
from safetensors.torch import load_model as load_weights
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback

from lora_ga_cli.config.schema import Config, MethodOptions
from lora_ga_cli.errors import RunError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.layers import trained_parameters
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.lora.peft_loading import load_peft
from lora_ga_cli.lora.useful_rank import TrainedProduct
from lora_ga_cli.model.targets import ALL_EXPERTS, ALL_LINEAR, Target, configured_ranks, find_targets
from lora_ga_cli.model.unadaptable import unadaptable
from lora_ga_cli.registry import METHODS

Model = PreTrainedModel | PeftModel
TASK_TYPES = {
    "causal_lm": TaskType.CAUSAL_LM,
    "seq2seq_lm": TaskType.SEQ_2_SEQ_LM,
    "sequence_classification": TaskType.SEQ_CLS,
}
"""PEFT's names of the tasks."""


@dataclass(frozen=True)
class AdapterOutput:
    """What a method saves, and what can be done with it.

    Args:
        label: its name in messages.
        loads_in: the library that loads it.
        mergeable: whether base and adapter can become one standard model.
        vllm: whether vLLM serves it as an adapter.
        size: the name of its size: ``rank``, ``width``, or empty if it has none.
        starts_as_base: whether the model computes what its base does before the first step.
        is_adapter: whether it is saved beside the base, in contrast to a complete model.
    """

    label: str
    loads_in: str
    mergeable: bool = True
    vllm: bool = False
    size: str = ""
    starts_as_base: bool = True
    is_adapter: bool = True


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to train.

    Args:
        model: a `PeftModel`, or the base itself.
        init: the initial factors that the method gave it; None if PEFT initialized it.
    """

    model: Model
    init: LoraInit | None = None

    @property
    def parameters(self) -> int:
        """How many parameters train."""
        return trained_parameters(self.model)


@dataclass(frozen=True)
class InitData:
    """What a method may initialize a model from, computed when it is asked for.

    Args:
        gradient: the gradient of the model, from the cache or estimated now.
        batches: the batches of training rows that the gradient is estimated from (``gradient.samples`` rows), on the
            model's device.
    """

    gradient: Callable[[], GradientArtifact]
    batches: Callable[[], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Link:
    """One part of a run, with its own initialization, optimizer and checkpoints; most runs have one.

    Args:
        index: its number, from 0.
        count: how many links the run has.
        first_step: optimizer steps of the run before this link.
        steps: optimizer steps of this link.
        total_steps: optimizer steps of the complete run.
    """

    index: int
    count: int
    first_step: int
    steps: int
    total_steps: int

    @classmethod
    def only(cls, steps: int) -> Link:
        """The link of a run that is not divided."""
        return cls(0, 1, 0, steps, steps)

    @property
    def title(self) -> str:
        """``link 2 of 3``; empty for the only one."""
        return f"link {self.index + 1} of {self.count}" if self.count > 1 else ""


def link_seed(seed: int, index: int) -> int:
    """The seed of a link, below 2³²: for the first link the run's seed itself, for another a hash of it and the index.

    (With ``seed + index`` the second link of a run would draw what the first one of a run with the next seed draws.)

    Args:
        seed: the seed of the run.
        index: the number of the link, from 0.
    """
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}|{index}".encode()).digest(), "big") % 2**32


ANY_LINK = Link.only(1000)
"""For the shapes of a model where the length of the run does not matter."""


def links_of(method: Method, steps: int) -> list[Link]:
    """The links of a run of so many optimizer steps."""
    starts = method.link_starts(steps)
    ends = [*starts[1:], steps]
    return [
        Link(index, len(starts), start, end - start, steps)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


class Method:
    """A fine-tuning method for one configuration.

    Args:
        config: whose ``method`` section is of the class `Options`.
    """

    Options: ClassVar[type[MethodOptions]] = MethodOptions
    uses: ClassVar[frozenset[str]] = frozenset()
    """Options outside the section ``method`` that have an effect with this method: ``rank``, ``alpha``,
    ``target_modules``, ``target_parameters``, ``rank_pattern``, ``adapter_dropout``, ``new_tokens`` (of ``model``)."""
    adapts_experts: ClassVar[bool] = False
    """Whether it can put an adapter on the weights of experts, which are parameters and no linear layers."""
    peft_type: ClassVar[str] = ""
    """PEFT's type of a saved adapter that this class loads itself; empty if PEFT alone loads it."""
    trains_pairs: ClassVar[bool] = False
    """Whether it trains LoRA's factors A and B, in pairs that an optimizer can look at (`lora.layers.lora_pairs`)."""
    gradient_vectors: ClassVar[int] = 2
    """Singular vectors of the gradient that a rank takes."""
    options_without_cost: ClassVar[frozenset[str]] = frozenset()
    """Options of the section ``method`` that change neither the memory nor the time of a run."""
    example: ClassVar[tuple[str, ...]] = ()
    """Options with which the test of every method trains it on its small model."""

    def __init__(self, config: Config):
        self.config = config

    @property
    def options(self) -> Any:
        """The section ``method``, of the class `Options`."""
        return self.config.method

    @property
    def output(self) -> AdapterOutput:
        """What it saves."""
        raise NotImplementedError

    @property
    def needs_gradient(self) -> bool:
        """Whether it needs the gradient of the model before the first step."""
        return False

    @property
    def initializes_from_rows(self) -> bool:
        """Whether it looks at the rows of ``gradient.samples`` itself, where no gradient is estimated from them."""
        return False

    @property
    def largest_rank(self) -> int:
        """The largest rank of a layer that the gradient has to serve."""
        return self.config.largest_rank

    @property
    def names_targets(self) -> bool:
        """Whether the user named the layers, in contrast to all linear ones."""
        return self.config.target_modules != ALL_LINEAR

    def gradient_ranks(self, targets: Mapping[str, Target]) -> dict[str, int]:
        """The rank of every layer that the gradient has to serve, by full name; a layer must have room for
        `gradient_vectors` times as many singular vectors."""
        return configured_ranks(targets, self.config.rank, self.config.rank_pattern)

    @classmethod
    def expert_obstacle(cls, config: Config) -> str:
        """Why experts get no adapter in a configuration, in a few words; empty if they can get one."""
        return "" if cls.adapts_experts else f"method {config.method.name} trains linear layers alone"

    @property
    def target_parameters(self) -> str | list[str]:
        """The configuration's ``target_parameters``, with null decided."""
        config = self.config
        if config.target_parameters is not None:
            return config.target_parameters
        return ALL_EXPERTS if config.target_modules == ALL_LINEAR and not self.expert_obstacle(config) else []

    def targets(self, model: nn.Module) -> dict[str, Target]:
        """The weights that ``target_modules`` and ``target_parameters`` name, by full name.

        Raises:
            TargetError: as `find_targets`.
        """
        return find_targets(model, self.config.target_modules, self.target_parameters)

    def left_out(self, model: nn.Module) -> dict[str, str]:
        """The linear layers that ``target_modules=all-linear`` leaves out, by full name, with the reason."""
        return {} if self.names_targets else unadaptable(model)

    @classmethod
    def shared_options(cls, config: Config) -> frozenset[str]:
        """Those of `uses` that have an effect in this configuration."""
        return cls.uses

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        """Describes options of a configuration that do not go together, one line each."""
        yield from ()

    def check_steps(self, steps: int) -> None:
        """Refuses a run of too few optimizer steps.

        Raises:
            TargetError
        """

    def check_model(self, empty: Callable[[], PreTrainedModel]) -> None:
        """Refuses a base that the options do not fit, before its weights are loaded.

        Args:
            empty: makes the base without weights.

        Raises:
            TargetError
        """

    def link_starts(self, steps: int) -> list[int]:
        """The first optimizer step of every link of a run of so many steps.

        A link has its own initialization, optimizer and checkpoints.
        """
        return [0]

    @property
    def continues_schedule(self) -> bool:
        """Whether the learning rate of a link goes on where that of the link before ended."""
        return False

    @property
    def link_warmup(self) -> int | None:
        """Steps over which a link after the first raises the rate that it goes on with; None takes the same share of
        its steps as the run has."""
        return None

    @property
    def carries_state(self) -> bool:
        """Whether the optimizer of a link begins with the state that the link before ended with."""
        return False

    @property
    def merged_rank(self) -> int | None:
        """The rank that the sum of several links is truncated to; None keeps it exact."""
        return None

    @property
    def leading_positions(self) -> int:
        """Positions before every row that trained vectors take."""
        return 0

    # Preparing the model

    def prepare(self, model: PreTrainedModel, *, link: Link, data: InitData, stored: LoraInit | None) -> PreparedModel:
        """Puts the method on a base model, in place.

        Args:
            link: the part of the run that the model is prepared for.
            data: asked only where the method needs it, and no initialization is stored.
            stored: the initialization of an earlier session of the same run, which is installed unchanged.

        Raises:
            TargetError, GradientError, RunError
        """
        torch.manual_seed(self.config.seed)  # what is drawn is the same, whatever was drawn before
        return PreparedModel(self.attach(model, link))

    def attach(self, model: PreTrainedModel, link: Link) -> Model:
        """Adds the trainable parameters, in place, before the method initializes them.

        Raises:
            TargetError: the model has no place for it.
        """
        raise NotImplementedError

    def attach_empty(self, model: PreTrainedModel, link: Link = ANY_LINK) -> nn.Module:
        """The shapes that the model has while it trains, without weights (on the meta device)."""
        with torch.device("meta"):
            return self.attach(model, link)

    # Training

    def optimizer(self, model: Model, optimizer: Optimizer) -> Optimizer:
        """The Trainer's AdamW, or one with other groups of parameters; the optimizer of ``trainer.optimizer`` takes its
        groups.

        Args:
            optimizer: the Trainer's AdamW, with its groups of parameters.
        """
        return optimizer

    def callbacks(self, model: Model) -> list[TrainerCallback]:
        """What happens between steps."""
        return []

    def carried_state(
        self, state: Mapping[str, Mapping[str, Tensor]], model: Model, before: Path
    ) -> dict[str, dict[str, Tensor]]:
        """What the optimizer of a link begins with, where `carries_state` says that it begins with something.

        Args:
            state: what the optimizer of the link before kept at its end: by name of the parameter, then of the entry.
            model: the link that begins.
            before: the saved adapter of the link before.
        """
        return {name: dict(entries) for name, entries in state.items()}

    def penalty(self, model: Model) -> Tensor | None:
        """What the model adds to the loss while it trains, which is not part of the loss that is reported."""
        return None

    # Files

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        """Writes what was trained.

        Args:
            state: the weights of the complete model, where they are gathered already.
        """
        gathered: Any = state
        model.save_pretrained(str(folder), state_dict=gathered)

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        """Reads a checkpoint's weights back into the model that trains.

        Raises:
            RunError: they belong to another model.
        """
        file = folder / "model.safetensors"
        if not file.exists():
            raise RunError(f"{folder}: no {file.name} there")
        load_weights(model, str(file))

    def save_state(self, model: Model, folder: Path) -> None:
        """Writes into a checkpoint what the method's next steps depend on beside weights and optimizer."""

    def restore_state(self, model: Model, folder: Path) -> None:
        """The inverse of `save_state`."""

    @classmethod
    def load(cls, base: PreTrainedModel, folder: Path, device: str) -> Model:
        """The original base model with a saved adapter on it, in evaluation mode.

        Raises:
            RunError: the files are damaged, or of another model.
        """
        return load_peft(base, folder, device)

    def merge(self, model: Model, dtype: torch.dtype) -> Callable[[Path], Path] | None:
        """Puts what was trained into the base's weights, in place, where PEFT does not do it.

        Args:
            dtype: the type of the merged weights.

        Returns:
            None, or a function that writes one more file into the merged model's folder, and returns it.
        """
        return None

    # Messages

    def built_size(self, model: nn.Module) -> list[int]:
        """The rank (or width, or length) of every layer, read from the built model."""
        return []

    def products(self, model: nn.Module) -> dict[str, TrainedProduct]:
        """The trained products of low rank of the built model, by the name of the layer that they change."""
        return {}

    def saved_size(self, prepared: PreparedModel) -> int | None:
        """The largest rank (or width) as it is saved; None where there is none."""
        return max(self.built_size(prepared.model), default=None) if self.output.size else None

    def describe(self, model: nn.Module) -> str:
        """What trains, in a few words: ``rank 8, 14 layers``."""
        return ""

    def describe_init(self) -> str:
        """How the model is initialized, in a few words."""
        return ""

    def describe_saved(self, size: int) -> str:
        """Why the saved size differs from the configured one, in a few words; empty if it does not."""
        return ""

    def describe_trained(self, model: nn.Module) -> str:
        """What training decided beside the values of weights, in a few words; empty if nothing."""
        return ""

    # Forecasts

    def largest_link(self, model: PreTrainedModel, links: Sequence[Link]) -> Link:
        """The link that trains the most parameters, the first of equal ones.

        Args:
            model: the base, with or without weights; it is not changed.
        """
        return links[0]

    def extra_state_bytes(self, model: nn.Module) -> int:
        """Memory of what the method keeps while it trains, beside the gradients and the optimizer's state."""
        return 0

    @property
    def trains_all_weights(self) -> bool:
        """Whether backpropagation computes the gradient of every weight of the base."""
        return False


def method_of(config: Config) -> Method:
    """The configured method."""
    method: type[Method] = METHODS[config.method.type]
    return method(config)
