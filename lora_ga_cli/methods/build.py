"""Making a base model trainable as a method says: an adapter and its start, or weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TargetError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.offset import Start, install
from lora_ga_cli.methods import adalora, bottleneck, full, inserted
from lora_ga_cli.methods.lora import lora_config, starting_point
from lora_ga_cli.methods.names import is_a, is_b
from lora_ga_cli.model.targets import Target, check_rank, find_targets, new_modules

TASK_TYPE = {
    "causal_lm": TaskType.CAUSAL_LM,
    "seq2seq_lm": TaskType.SEQ_2_SEQ_LM,
    "sequence_classification": TaskType.SEQ_CLS,
}


@dataclass(frozen=True)
class Trainable:
    """A model ready to train.

    Args:
        model: a `PeftModel`, or the base itself.
        start: what a start other than LoRA's own did to it; None if nothing.
    """

    model: PeftModel | PreTrainedModel
    start: Start | None = None

    @property
    def parameters(self) -> int:
        """How many numbers train."""
        numbers = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return numbers - (self.start.frozen if self.start is not None else 0)


def build(
    model: PreTrainedModel,
    config: Config,
    *,
    steps: int,
    artifact: Callable[[], GradientArtifact],
    stored: Start | None,
) -> Trainable:
    """Puts the configured method on ``model``, in place.

    Args:
        steps: optimizer steps of the whole run.
        artifact: gives the gradient; called only for a gradient start that is not stored.
        stored: the start of an earlier session of the same run, installed as it is.

    Raises:
        TargetError, GradientError, RunError
    """
    gradient = artifact() if config.method.start == "gradient" and stored is None else None  # of the bare model
    torch.manual_seed(config.seed)  # A's random start, however many numbers were drawn before
    wrapped = _attach(model, config, steps)
    if not (isinstance(wrapped, PeftModel) and config.method.low_rank):
        return Trainable(wrapped)
    if stored is None:
        stored = starting_point(wrapped, config, gradient)
    return Trainable(wrapped, install(wrapped, stored) if stored is not None else None)


def build_empty(model: PreTrainedModel, config: Config, steps: int = 1000) -> nn.Module:
    """The method on a model without weights (on the meta device): the shapes it has while it trains.

    Args:
        steps: optimizer steps of the whole run; shapes do not depend on them.

    Raises:
        TargetError
    """
    if config.method.moved_start and config.shift == "adapter":
        pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
        config = config.model_copy(update={"rank": 2 * config.rank, "rank_pattern": pattern})
    with torch.device("meta"):
        return _attach(model, config, steps)


def count_trained(empty: nn.Module, config: Config) -> int:
    """How many numbers a model of `build_empty` trains."""
    trained = {name: item.numel() for name, item in empty.named_parameters() if item.requires_grad}
    frozen = 0
    if config.method.moved_start and config.shift == "adapter":  # half of each pair of factors carries the start
        frozen = sum(count for name, count in trained.items() if is_a(name) or is_b(name)) // 2
    return sum(trained.values()) - frozen


def _attach(model: PreTrainedModel, config: Config, steps: int) -> PeftModel | PreTrainedModel:
    return ATTACH[config.method.adapter](model, config, steps)


def _whole(model: PreTrainedModel, config: Config, steps: int) -> PreTrainedModel:
    full.unfreeze(model, config.method)
    return model


def _lora(model: PreTrainedModel, config: Config, steps: int) -> PeftModel:
    targets = find_targets(model, config.target_modules)
    if config.method.adapter == "dora":
        _refuse_integers_on_cpu(targets)
    return _wrapped(model, lora_config(config, model, targets, TASK_TYPE[config.model.task]))


def _refuse_integers_on_cpu(targets: Mapping[str, Target]) -> None:
    """DoRA's norms are of the weight, and PEFT loses its scales when it reads an 8-bit one on a CPU."""
    for name, target in targets.items():
        if target.weight.dtype == torch.int8 and target.weight.device.type == "cpu":
            raise TargetError(
                f"{name}: PEFT's DoRA cannot read 8-bit weights on a CPU: model.quantization=nf4, another device, or "
                "method.adapter=lora"
            )


def _adalora(model: PreTrainedModel, config: Config, steps: int) -> PeftModel:
    targets = find_targets(model, config.target_modules)
    rank = adalora.initial_rank(config)
    check_rank({name: target.shape for name, target in targets.items()}, config.rank, rank)
    wrapped = _wrapped(model, adalora.adalora_config(config, model, targets, TASK_TYPE[config.model.task], steps))
    adalora.penalize_in_training_only(wrapped)
    return wrapped


def _prefix_embedding(model: PreTrainedModel, config: Config, steps: int) -> PeftModel:
    """LoRA's prefix-embedding tuning without infix tokens, which is PEFT's prompt tuning (of T5, in the encoder)."""
    decoder = not getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "score")
    if config.model.task == "sequence_classification" and decoder:
        raise TargetError(
            f"{type(model).__name__} reads the class at a row's last token, which it cannot find behind a trained "
            "prefix: take another method, or an encoder"
        )
    embeddings: Any = model.get_input_embeddings()
    options = PromptTuningConfig(
        task_type=TASK_TYPE[config.model.task],
        num_virtual_tokens=config.method.prefix_length,
        num_transformer_submodules=1,
        token_dim=embeddings.weight.shape[1],
        num_layers=getattr(model.config, "num_hidden_layers", None),  # PEFT asks for both, and finds not every name
        num_attention_heads=getattr(model.config, "num_attention_heads", None),
        prompt_tuning_init=PromptTuningInit.RANDOM,
        modules_to_save=new_modules(model) or None,  # type: ignore[call-arg]
        revision=config.model.revision,
    )
    return _wrapped(model, options)


def _bottleneck(model: PreTrainedModel, config: Config, steps: int) -> PreTrainedModel:
    modules = bottleneck.places(model, config.target_modules)
    return inserted.insert(model, "bottleneck", {"modules": modules, "width": config.rank})


def _prefix_layer(model: PreTrainedModel, config: Config, steps: int) -> PreTrainedModel:
    return inserted.insert(model, "prefix_layer", {"length": config.method.prefix_length})


def _wrapped(model: PreTrainedModel, options: PeftConfig) -> PeftModel:
    wrapped = get_peft_model(model, options)
    assert isinstance(wrapped, PeftModel)
    return wrapped


ATTACH: dict[str, Callable[[PreTrainedModel, Config, int], PeftModel | PreTrainedModel]] = {
    "none": _whole,
    "lora": _lora,
    "dora": _lora,
    "adalora": _adalora,
    "bottleneck": _bottleneck,
    "prefix_embedding": _prefix_embedding,
    "prefix_layer": _prefix_layer,
}
"""By `MethodConfig.adapter`: puts it on a model, in place."""
