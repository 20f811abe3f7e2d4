"""Trains weights of the model itself: all of them, those of linear layers, its last blocks, or its biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.exclusions import Exclusion
from lora_ga_cli.config.schema import Config, MethodOptions, Positive
from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods.base import AdapterOutput, Link, Method
from lora_ga_cli.model.blocks import blocks
from lora_ga_cli.model.targets import find_targets, new_modules
from lora_ga_cli.registry import METHODS


@METHODS.register("full")
class Full(Method):
    """Fine-tuning without an adapter; a new classifier head always trains."""

    class Options(MethodOptions):
        """Which weights of the model train."""

        type: Literal["full"] = "full"
        train: Literal["all", "linear", "top_layers", "biases"] = "all"
        """``linear``: the weights of ``target_modules``, the layers that an adapter would get. ``top_layers``: the last
        ``top_layers`` blocks. ``biases``: BitFit (arXiv 2106.10199)."""
        top_layers: Positive = 2
        """Blocks that ``train=top_layers`` trains."""
        exclusions: ClassVar[tuple[Exclusion, ...]] = (
            Exclusion("method.train", ("method.top_layers",), lambda value: value != "top_layers"),
        )

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("the complete model", "transformers", is_adapter=False)

    @classmethod
    def shared_options(cls, config: Config) -> frozenset[str]:
        options: Any = config.method
        return frozenset({"linear": {"target_modules"}, "all": {"new_tokens"}}.get(options.train, ()))

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        options: Any = config.method
        if options.train != "top_layers" and options.top_layers != 2:
            yield f"method.top_layers={options.top_layers} does nothing with method.train={options.train}"
        if config.model.dtype == "float16":
            yield "training every weight in float16 loses small updates: use model.dtype=bfloat16 or float32"
        if config.model.quantization is not None:
            given = f"model.quantization={config.model.quantization}"
            yield f"{given}: quantized weights cannot be trained; method=lora trains an adapter"
        if config.model.shard:
            yield "model.shard=true does not go with method.type=full"

    def attach(self, model: PreTrainedModel, link: Link) -> PreTrainedModel:
        """
        Raises:
            TargetError: the model has no such weights.
        """
        model.requires_grad_(False)
        for parameter in CHOICES[self.options.train](model, self.config):
            parameter.requires_grad_(True)
        for name in new_modules(model):
            model.get_submodule(name).requires_grad_(True)
        return model

    @property
    def trains_all_weights(self) -> bool:
        return self.options.train in ("all", "linear")  # all but a small part of them


def _all(model: nn.Module, config: Any) -> Iterable[nn.Parameter]:
    return model.parameters()


def _linear(model: nn.Module, config: Any) -> Iterable[nn.Parameter]:
    """The weights W of the target layers; their biases, embeddings and norms stay as they are, as beside LoRA."""
    return [target.weight for target in find_targets(model, config.target_modules).values()]


def _top_layers(model: nn.Module, config: Any) -> Iterable[nn.Parameter]:
    """The last blocks; two of them are FT-Top2 in the LoRA paper (arXiv 2106.09685)."""
    found, count = blocks(model), config.method.top_layers
    if count > len(found):
        raise TargetError(f"method.top_layers={count}, and {type(model).__name__} has {len(found)} blocks")
    return [parameter for block in list(found)[-count:] for parameter in block.parameters()]


def _biases(model: nn.Module, config: Any) -> Iterable[nn.Parameter]:
    """BitFit (arXiv 2106.10199); the biases of normalizations are among them."""
    found = [parameter for name, parameter in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
    if not found:
        raise TargetError(
            f"method.train=biases: {type(model).__name__} has no bias (Llama's family has none); GPT-2, OPT and BERT do"
        )
    return found


CHOICES: dict[str, Callable[[nn.Module, Any], Iterable[nn.Parameter]]] = {
    "all": _all,
    "linear": _linear,
    "top_layers": _top_layers,
    "biases": _biases,
}
