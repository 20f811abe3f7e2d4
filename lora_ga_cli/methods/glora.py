"""Generalized LoRA (GLoRA, arXiv 2306.07967) as PEFT computes it.

A target ``y = W x + b``, with W (d_out, d_in) and b (d_out), becomes ``y = W' x + b'`` with

    ``W' = W + W∘A + B`` and ``b' = b + b∘D + E + W C``,

where ∘ multiplies entry by entry. Each letter has a form: ``lora`` is a product of two trained factors of rank
``rank``, ``vector`` one trained number for each output (for C: for each input), ``constant`` a single trained number,
and ``none`` leaves the letter out. A and B share a form, and so do D and E. Trained numbers begin at zero, and of two
factors the left one does, so that nothing changes before the first step.

The formulas are those of PEFT's documentation; they are not verified against the paper. Two things are known to differ
from the paper or from PEFT:

- The paper searches a form for every layer by evolution. Here all layers have the same forms.
- PEFT's default also trains C, D and E, and leaves them out of every layer that has no bias without a word. Here they
  are off by default, and a layer without a bias is refused if one of them is asked for.

The changed weight is rounded to the base's type before it multiplies x. On a base in bfloat16, changes below about
0.4 % of an entry of W are therefore not seen by the forward pass, although the float32 factors keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from peft import GloraConfig, PeftModel
from peft.tuners.glora import GloraLayer
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config, MethodOptions
from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.layers import ADAPTER, PREFIX
from lora_ga_cli.lora.useful_rank import TrainedProduct
from lora_ga_cli.methods.base import TASK_TYPES, AdapterOutput, Link
from lora_ga_cli.methods.lora import wrap
from lora_ga_cli.methods.peft_adapter import PeftAdapter
from lora_ga_cli.model.targets import Target, find_targets, new_modules, shortest_names
from lora_ga_cli.registry import METHODS


@METHODS.register("glora")
class Glora(PeftAdapter):
    """Trained changes of each target's weight, in proportion to it and added to it, and of its bias."""

    class Options(MethodOptions):
        """The forms of GLoRA's five changes, by PEFT's names."""

        type: Literal["glora"] = "glora"
        config_A_B: Literal["lora", "vector", "constant", "none"] = "lora"  # noqa: N815  # PEFT's name, as the others
        """Form of A, which multiplies the weight's entries, and of B, which is added to them."""
        config_C: Literal["lora", "vector", "none"] = "none"  # noqa: N815
        """Form of C; the weight times C is added to the bias. Every target must have a bias."""
        config_D_E: Literal["vector", "constant", "none"] = "none"  # noqa: N815
        """Form of D, which multiplies the bias, and of E, which is added to it. Every target must have a bias."""

    uses = frozenset({"rank", "target_modules"})

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("a GLoRA adapter", "PEFT", size="rank" if _low_rank(self.options) else "")

    @classmethod
    def shared_options(cls, config: Config) -> frozenset[str]:
        return cls.uses if _low_rank(config.method) else cls.uses - {"rank"}

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        options: Any = config.method
        if options.config_A_B == "none":
            yield (
                "method.config_A_B=none: PEFT then keeps and saves two matrices of zeros as large as every weight; "
                "vector and constant train few numbers instead"
            )
        if config.model.quantization is not None:
            given = f"model.quantization={config.model.quantization}"
            yield f"{given}: GLoRA multiplies the entries of a weight, which must not be quantized"
        if config.model.shard:
            yield "model.shard=true does not go with method.type=glora"

    def attach(self, model: PreTrainedModel, link: Link) -> PeftModel:
        """
        Raises:
            TargetError: a target is not a plain `nn.Linear`, or has no bias and the options change it.
        """
        config, options = self.config, self.options
        targets = find_targets(model, config.target_modules)
        _refuse_other_layers(targets)
        if options.config_C != "none" or options.config_D_E != "none":
            _refuse_missing_bias(targets, options)
        described = GloraConfig(
            task_type=TASK_TYPES[config.model.task],
            r=config.rank,
            target_modules=shortest_names(model, targets),
            config_A_B=options.config_A_B,
            config_C=options.config_C,
            config_D_E=options.config_D_E,
            modules_to_save=new_modules(model) or None,
            revision=config.model.revision,
        )
        return wrap(model, described)

    def built_size(self, model: nn.Module) -> list[int]:
        return [layer.r[ADAPTER] for layer in _layers(model).values()] if _low_rank(self.options) else []

    def products(self, model: nn.Module) -> dict[str, TrainedProduct]:
        if self.options.config_A_B != "lora":
            return {}
        found = {}
        for name, layer in _layers(model).items():
            pairs: list[Any] = [layer.glora_A[ADAPTER], layer.glora_B[ADAPTER]]
            trained = sum(item.numel() for pair in pairs for item in pair.parameters())
            base: Any = layer.get_base_layer()
            found[name] = TrainedProduct(layer.r[ADAPTER], (base.out_features, base.in_features), trained)
        return found

    def describe(self, model: nn.Module) -> str:
        options = self.options
        forms = {"A and B": options.config_A_B, "C": options.config_C, "D and E": options.config_D_E}
        parts = [f"{letters} as {form}" for letters, form in forms.items() if form != "none"]
        if _low_rank(options):
            parts.append(f"rank {self.config.rank}")
        return ", ".join([*parts, f"{len(_layers(model))} layers"])

    def describe_init(self) -> str:
        return "initialized as the base computes"


def _layers(model: nn.Module) -> dict[str, GloraLayer]:
    """The layers with such changes by their names in the base model."""
    return {
        name.removeprefix(PREFIX): module for name, module in model.named_modules() if isinstance(module, GloraLayer)
    }


def _low_rank(options: Any) -> bool:
    return "lora" in (options.config_A_B, options.config_C)


def _refuse_other_layers(targets: Mapping[str, Target]) -> None:
    for name, target in targets.items():
        if type(target.module) is not nn.Linear:
            raise TargetError(
                f"{name}: PEFT's GLoRA takes nn.Linear only, and this is {type(target.module).__name__}: leave it out "
                "of target_modules, or take method=lora"
            )


def _refuse_missing_bias(targets: Mapping[str, Target], options: Any) -> None:
    without = [name for name, target in targets.items() if getattr(target.module, "bias", None) is None]
    if not without:
        return
    given = {"config_C": options.config_C, "config_D_E": options.config_D_E}
    asked = " and ".join(f"method.{name}={form}" for name, form in given.items() if form != "none")
    more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
    raise TargetError(
        f"{without[0]}{more} has no bias, which {asked} would change: set both to none, or name layers with a bias in "
        "target_modules"
    )
