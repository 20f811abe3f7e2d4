"""Trained vectors before every row (LoRA, arXiv 2106.09685, section 5.1), without infix tokens.

**Prefix-embedding tuning** trains vectors at the input; it is PEFT's prompt tuning (of T5, in the encoder).

**Prefix-layer tuning** trains hidden states at every layer: each block sees ``length`` more positions, whose hidden
states (length, d_model) are trained and replace what the block before computed there: ``layers · length · d_model``
parameters. (PEFT's prefix tuning trains keys and values instead, twice as many parameters, without the block's
projections.)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from peft import PeftModel, PromptTuningConfig, PromptTuningInit
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config, MethodOptions, Positive
from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods.base import TASK_TYPES, AdapterOutput, Link
from lora_ga_cli.methods.custom import CustomAdapter, positive
from lora_ga_cli.methods.lora import wrap
from lora_ga_cli.methods.peft_adapter import PeftAdapter
from lora_ga_cli.model.blocks import blocks
from lora_ga_cli.model.targets import new_modules
from lora_ga_cli.registry import METHODS

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""
SPREAD = 0.02
"""Standard deviation of the first prefixes if the model's configuration states none for its weights."""


class PrefixOptions(MethodOptions):
    """The number of trained vectors."""

    prefix_length: Positive = 32
    """Trained vectors before a row."""


@METHODS.register("prefix_embedding")
class PrefixEmbedding(PeftAdapter):
    """Trained vectors before each row's embeddings."""

    class Options(PrefixOptions):
        """Prefix-embedding tuning (arXiv 2106.09685)."""

        type: Literal["prefix_embedding"] = "prefix_embedding"

    example = ("method.prefix_length=3",)

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("a trained prefix", "PEFT", mergeable=False, starts_as_base=False)

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        if config.model.shard:
            yield "model.shard=true does not go with method.type=prefix_embedding"

    @property
    def leading_positions(self) -> int:
        return int(self.options.prefix_length)

    def attach(self, model: PreTrainedModel, link: Link) -> PeftModel:
        config = self.config
        decoder = not getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "score")
        if config.model.task == "sequence_classification" and decoder:
            raise TargetError(
                f"{type(model).__name__} reads the class at a row's last token, which it cannot find behind a trained "
                "prefix: take another method, or an encoder"
            )
        embeddings: Any = model.get_input_embeddings()
        described = PromptTuningConfig(
            task_type=TASK_TYPES[config.model.task],
            num_virtual_tokens=self.options.prefix_length,
            num_transformer_submodules=1,
            token_dim=embeddings.weight.shape[1],
            # PEFT asks for both, and does not find every name
            num_layers=getattr(model.config, "num_hidden_layers", None),
            num_attention_heads=getattr(model.config, "num_attention_heads", None),
            prompt_tuning_init=PromptTuningInit.RANDOM,
            modules_to_save=new_modules(model) or None,  # type: ignore[call-arg]
            revision=config.model.revision,
        )
        return wrap(model, described)

    def describe(self, model: nn.Module) -> str:
        return f"{self.options.prefix_length} vectors, 1 layer"

    def describe_init(self) -> str:
        return "initialized at random, so the model differs from its base"


@METHODS.register("prefix_layer")
class PrefixLayer(CustomAdapter):
    """Trained hidden states before each row, at every layer."""

    class Options(PrefixOptions):
        """Prefix-layer tuning (arXiv 2106.09685)."""

        type: Literal["prefix_layer"] = "prefix_layer"

    example = ("method.prefix_length=3",)

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("trained prefixes of every layer", "loraga", mergeable=False, starts_as_base=False)

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.task != "causal_lm":
            yield "method.type=prefix_layer is for model.task=causal_lm; prefix_embedding takes any task"

    @property
    def leading_positions(self) -> int:
        return int(self.options.prefix_length)

    def settings(self, model: PreTrainedModel) -> dict[str, Any]:
        return {"length": self.options.prefix_length}

    @classmethod
    def insert(cls, model: nn.Module, settings: Mapping[str, Any]) -> None:
        insert(model, positive(settings, "length"))

    def describe(self, model: nn.Module) -> str:
        return f"{self.options.prefix_length} vectors, {len(blocks(model))} layers"

    def describe_init(self) -> str:
        return "initialized at random, so the model differs from its base"


def insert(model: nn.Module, length: int) -> None:
    """Puts prefixes on every block of a decoder, in place; `generate` works as before.

    Raises:
        TargetError: the model has an encoder.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise TargetError(f"prefix_layer is for decoders, and {type(model).__name__} has an encoder")
    found = blocks(model)
    device = next(model.parameters()).device
    spread = float(getattr(config, "initializer_range", SPREAD) or SPREAD)
    rows = _Rows(length)
    model.leading_positions = length  # type: ignore[assignment]
    for block in found:
        block.prefix = nn.Parameter(torch.empty(length, config.hidden_size, device=device).normal_(std=spread))
        block.register_forward_pre_hook(rows.replace, with_kwargs=True)
    model.register_forward_pre_hook(rows.begin, with_kwargs=True)
    model.register_forward_hook(rows.end)


class _Rows:
    """The hooks that add prefixes to a batch while the model computes it."""

    def __init__(self, length: int):
        self.length = length
        self.reading = False
        """Whether the prefix positions are among those computed now, or lie in the cache already."""
        self.tokens = 0

    def begin(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Adds positions for the prefix before every row."""
        kwargs = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
        ids = kwargs.pop("input_ids", None)
        inputs = kwargs.get("inputs_embeds")
        inputs = model.get_input_embeddings()(ids) if inputs is None else inputs
        past = kwargs.get("past_key_values")
        seen = past.get_seq_length() if past is not None else 0
        self.reading, self.tokens = seen == 0, inputs.shape[1]
        count = len(inputs)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            mask = torch.cat([mask.new_ones(count, self.length), mask], 1)
        if self.reading:
            inputs = torch.cat([inputs.new_zeros(count, self.length, inputs.shape[2]), inputs], 1)
            if kwargs.get("labels") is not None:
                labels = kwargs["labels"]
                kwargs["labels"] = torch.cat([labels.new_full((count, self.length), -100), labels], 1)
        kwargs.pop("cache_position", None)
        kwargs |= {"inputs_embeds": inputs, "attention_mask": mask, "position_ids": None}
        if mask is not None:
            kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        return (), kwargs

    def replace(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Puts a block's prefix in the place of what the block before computed there."""
        if not self.reading:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        prefix = block.prefix.to(hidden.dtype).expand(len(hidden), -1, -1)
        hidden = torch.cat([prefix, hidden[:, self.length :]], 1)
        return ((hidden, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": hidden})

    def end(self, model: Any, args: Any, output: Any) -> Any:
        """Removes the logits of the prefix positions, if there are any logits."""
        if output.logits is not None and output.logits.shape[1] > self.tokens:
            output.logits = output.logits[:, -self.tokens :]
        return output
