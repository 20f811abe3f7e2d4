"""What is kept of a trained model when its memory is free: its losses, and the logits to compare the saved one with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lora_ga_cli import distributed
from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.methods.base import Link
from lora_ga_cli.model.probe import probe_logits
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.training.cost import combined, read_cost
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.trainer import LoragaTrainer

Losses = dict[str, float | None]
"""The last training loss and the validation loss."""


@dataclass(frozen=True)
class Result:
    """What is kept of the trained model after it is saved and its memory is free.

    Args:
        logits: the logits of the probe rows.
        size: the largest rank (or width) of the adapter as it is saved; None where it has none.
        truncation_error: the relative error (Frobenius norm) of truncating the sum of a chain's links to a lower rank;
            0 if nothing was truncated.
        note: what training decided beside the values of weights; empty if nothing.
    """

    logits: torch.Tensor
    losses: Losses
    size: int | None
    truncation_error: float = 0.0
    note: str = ""


def final_losses(inputs: Inputs, trainer: LoragaTrainer) -> Losses:
    """Loss of the last logged training step, and of the validation rows for the weights that are kept.

    Of a chain's links, the last one has a validation loss.
    """
    points = [point for point in trainer.state.log_history if "train_runtime" not in point]  # the same in every process
    training = next((point["loss"] for point in reversed(points) if "loss" in point), None)
    link = trainer.link
    if inputs.data.validation is None or link.index + 1 < link.count:
        return {"training_loss": training, "validation_loss": None}
    last = points[-1] if points else {}
    if trainer.args.load_best_model_at_end:
        validation = trainer.state.best_metric
    elif "eval_loss" in last and last["step"] == trainer.state.global_step:
        validation = last["eval_loss"]
    else:
        validation = trainer.evaluate()["eval_loss"]
    return {"training_loss": training, "validation_loss": validation}


def trained_logits(inputs: Inputs, trainer: LoragaTrainer) -> torch.Tensor:
    """Logits of the trained model as PEFT computes them: without the Trainer's autocast, and with products of adapters
    in float32, whatever their type was in training."""
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    set_adapter_dtype(trained, None)
    return probe_logits(trained, inputs.probe_batch())


def write_costs(run: RunFolder, links: Sequence[Link]) -> None:
    """Writes into the manifest what the complete run cost."""
    costs = [cost for link in links if (cost := read_cost(run.link(link).cost_file)) is not None]
    if costs and distributed.is_main():
        run.update_manifest(**combined(costs).entries)
