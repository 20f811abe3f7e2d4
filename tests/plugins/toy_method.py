"""A method that a user adds in one file: LoRA whose B never grows beyond a norm.

``loraga train recipe=quickstart method=clipped_lora --code toy_method.py --config-dir FOLDER``, where
``FOLDER/method/clipped_lora.yaml`` is the file beside this one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import TrainerCallback

from lora_ga_cli.lora.layers import LoraPair, lora_pairs
from lora_ga_cli.methods.base import Model
from lora_ga_cli.methods.lora import Lora, LoraOptions
from lora_ga_cli.registry import METHODS


@METHODS.register("clipped_lora")
class ClippedLora(Lora):
    """LoRA whose every B is scaled back after a step that made it too large."""

    class Options(LoraOptions):
        """LoRA with a bound on B."""

        type: Literal["clipped_lora"] = "clipped_lora"
        max_norm: Annotated[float, Field(gt=0)] = 1.0
        """The largest Frobenius norm that the B of a layer may have."""

    def callbacks(self, model: Model) -> list[TrainerCallback]:
        return [Clip(lora_pairs(model), self.options.max_norm)]  # type: ignore[arg-type]

    def describe_init(self) -> str:
        return f"{super().describe_init()}, B clipped to norm {self.options.max_norm:g}"


class Clip(TrainerCallback):
    """Scales back what an optimizer step made too large."""

    def __init__(self, pairs: list[LoraPair], max_norm: float):
        self.pairs, self.max_norm = pairs, max_norm

    @torch.no_grad()
    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        for pair in self.pairs:
            norm = float(pair.delta_b.norm())
            if norm > self.max_norm:
                pair.delta_b.mul_(self.max_norm / norm)
