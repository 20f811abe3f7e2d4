"""Quantization-aware LoRA (QA-LoRA, arXiv 2309.14717): a base of few bits whose adapter merges into its zero points.

Every target's W (d_out, d_in) is rounded to a grid (`model.grid`): a group of ``group_size`` entries along the inputs
of a row has a scale and a zero point. The adapter sees only the sums of the inputs of each group,

    ``y = W x + s · B A pool(x)``, ``pool(x)_j = Σ x_i over the entries i of group j``,

with A (rank, d_in / group_size), B (d_out, rank) and s = alpha / rank. It is LoRA whose every column of A stands
``group_size`` times side by side. So it adds the same number to all entries of a group, ``s·(B A)``, and

    ``scale · (q - zero) + s·(B A) = scale · (q - zero')``, ``zero' = zero - s·(B A) / scale``:

the merged weight has the same q and the same scales. Merging writes it as a plain model, and beside it q, scales and
zero points in ``quantized.safetensors`` (`model.grid.write_grids` describes the format), which give the same weights.

What is known to differ:

- The paper's pool is a sum, and the authors' code has a mean. (PEFT's, which takes layers quantized by GPTQ only,
  multiplies the mean by the number of groups instead of by their size: another s, unless the two are equal.) What is
  said here about the paper is not verified against it.
- The paper quantizes with GPTQ; here every entry goes to the nearest point of the grid.
- A begins at random between ±1/√d_in, as LoRA's A with the same number of inputs does. Drawn for its own d_in /
  group_size inputs, it would be √group_size times larger. B begins at zero.
- Weights are held dense while training, in the base's type, so no memory is saved then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import MethodOptions
from lora_ga_cli.errors import TargetError
from lora_ga_cli.methods.base import AdapterOutput, Model
from lora_ga_cli.methods.custom import CustomAdapter, positive
from lora_ga_cli.model.grid import Grid, quantize, write_grids
from lora_ga_cli.model.targets import Target, configured_ranks, find_targets
from lora_ga_cli.registry import METHODS

ADAPTER = "qa_lora"
"""The name of the adapter inside a target."""


@METHODS.register("qa_lora")
class QaLora(CustomAdapter):
    """LoRA on sums of inputs beside a weight of few bits, which merges into the weight's zero points."""

    class Options(MethodOptions):
        """The grid that weights are rounded to."""

        type: Literal["qa_lora"] = "qa_lora"
        bits: Literal[2, 3, 4, 8] = 4
        """Bits of an entry of a weight."""
        group_size: Annotated[int, Field(ge=4, multiple_of=4)] = 32
        """Inputs of a row that share a scale and a zero point, and that the adapter sees as their sum."""

    uses = frozenset({"rank", "alpha", "target_modules", "rank_pattern", "adapter_dropout"})
    example = ("method.group_size=8",)

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("a QA-LoRA adapter", "loraga", size="rank", starts_as_base=False)

    def settings(self, model: PreTrainedModel) -> dict[str, Any]:
        """
        Raises:
            TargetError: ``group_size`` does not divide a target's d_in, or a target has fewer groups than its rank.
        """
        config, options = self.config, self.options
        targets = find_targets(model, config.target_modules)
        ranks = configured_ranks(targets, config.rank, config.rank_pattern)
        for name, target in targets.items():
            _refuse_shape(name, target.shape, options.group_size, ranks[name])
        return {
            "ranks": ranks,
            "alpha": config.alpha,
            "bits": options.bits,
            "group_size": options.group_size,
            "dropout": config.adapter_dropout,
        }

    @classmethod
    def insert(cls, model: nn.Module, settings: Mapping[str, Any]) -> None:
        bits, group_size = positive(settings, "bits"), positive(settings, "group_size")
        ranks, alpha, dropout = dict(settings["ranks"]), float(settings["alpha"]), float(settings["dropout"])
        for name, target in find_targets(model, list(ranks)).items():
            rank = positive(ranks, name)
            _refuse_shape(name, target.shape, group_size, rank)
            _adapt(target, bits, group_size, rank, alpha / rank, dropout)

    def merge(self, model: Model, dtype: torch.dtype) -> Callable[[Path], Path]:
        """Moves the zero points, in place, and makes the targets plain layers again.

        Returns:
            A function that writes the grids of all targets into a folder, and returns the file.
        """
        grids = {}
        for name in model.custom_adapter["ranks"]:  # type: ignore[union-attr, index]
            (target,) = find_targets(model, [name]).values()
            adapter: GroupedLora = getattr(target.module, ADAPTER)
            grids[name] = grid = adapter.merged()
            target.weight.data = target.oriented(grid.dense()).to(target.weight.device, dtype).contiguous()
            adapter.hook.remove()
            delattr(target.module, ADAPTER)
        return lambda folder: write_grids(grids, folder)

    def built_size(self, model: nn.Module) -> list[int]:
        return [len(item) for name, item in model.named_parameters() if name.endswith(f".{ADAPTER}.a")]

    def describe(self, model: nn.Module) -> str:
        ranks = self.built_size(model)
        distinct = sorted(set(ranks))
        text = f"rank {distinct[0]}" + (f" to {distinct[-1]}" if len(distinct) > 1 else "")
        return f"{text}, {len(ranks)} layers"

    def describe_init(self) -> str:
        options = self.options
        return f"weights rounded to {options.bits} bits in groups of {options.group_size}, B zero"


class GroupedLora(nn.Module):
    """Computes ``s · B A pool(x)`` for inputs x (…, d_in); see the docstring of the file.

    Args:
        grid: of the target's weight. It is held on the CPU, since only merging needs it.
        shape: (d_out, d_in).
    """

    def __init__(
        self, grid: Grid, shape: tuple[int, int], rank: int, scaling: float, dropout: float, device: torch.device
    ):
        super().__init__()
        d_out, d_in = shape
        self.grid, self.scaling = grid, scaling
        self.groups = grid.scale.shape[1]
        self.a = nn.Parameter(torch.empty(rank, self.groups, device=device).uniform_(-(d_in**-0.5), d_in**-0.5))
        self.b = nn.Parameter(torch.zeros(d_out, rank, device=device))
        self.dropout = nn.Dropout(dropout)
        self.hook: Any = None
        """The handle of the hook that adds the output."""

    def forward(self, x: Tensor) -> Tensor:
        sums = self.dropout(x.to(self.a.dtype)).unflatten(-1, (self.groups, -1)).sum(-1)  # (…, d_in / group_size)
        return self.scaling * functional.linear(functional.linear(sums, self.a), self.b)

    @torch.no_grad()
    def merged(self) -> Grid:
        """The grid with ``s·(B A)`` added to all entries of each group."""
        return self.grid.plus((self.scaling * (self.b.double() @ self.a.double())).cpu())


def _refuse_shape(name: str, shape: tuple[int, int], group_size: int, rank: int) -> None:
    d_out, d_in = shape
    if d_in % group_size:
        sizes = [size for size in range(4, min(d_in, 256) + 1, 4) if d_in % size == 0]
        nearest = min(sizes, key=lambda size: abs(size - group_size), default=None)
        advice = f"choose method.group_size={nearest}, or " if nearest else ""
        raise TargetError(
            f"{name} (d_in {d_in}): method.group_size={group_size} does not divide its inputs: {advice}leave it out of "
            "target_modules"
        )
    if rank > min(d_out, d_in // group_size):
        raise TargetError(
            f"{name}: rank={rank}, and a product of (d_out {d_out}, rank) and (rank, {d_in // group_size} groups) has "
            f"at most rank {min(d_out, d_in // group_size)}: choose a smaller rank or method.group_size"
        )


@torch.no_grad()
def _adapt(target: Target, bits: int, group_size: int, rank: int, scaling: float, dropout: float) -> None:
    """Rounds a target's weight to its grid and puts the adapter beside it, in place."""
    weight = target.weight
    grid = quantize(target.oriented(weight.detach()), bits, group_size)
    weight.data = target.oriented(grid.dense()).to(weight.dtype).contiguous()
    kept = grid if weight.is_meta else grid.cpu()
    adapter = GroupedLora(kept, target.shape, rank, scaling, dropout, weight.device)
    target.module.add_module(ADAPTER, adapter)
    adapter.hook = target.module.register_forward_hook(_add)


def _add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = module.qa_lora(inputs[0])
    return output + added.to(output.dtype)
