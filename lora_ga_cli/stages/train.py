"""Stage 3: training, from wherever an earlier session of the same run stopped, to a checked and documented result."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import EarlyStoppingCallback, PrinterCallback

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.methods import names
from lora_ga_cli.methods.adalora import Allocation
from lora_ga_cli.methods.build import Trainable
from lora_ga_cli.methods.forms import FORMS
from lora_ga_cli.model.loading import find_source
from lora_ga_cli.model.probe import check_equal, probe_logits, rounding_type
from lora_ga_cli.report.card import served_rank, write_card
from lora_ga_cli.report.console import duration, step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.progress import TrainingDisplay
from lora_ga_cli.report.provenance import now
from lora_ga_cli.stages.initialize import initialize_run, opened
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.trained import load_trained
from lora_ga_cli.training import metrics
from lora_ga_cli.training.arguments import accumulation_steps, training_arguments
from lora_ga_cli.training.callbacks import FiniteGradient, FrozenStart, Recorder
from lora_ga_cli.training.checkpoints import last_whole, step_of
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.trainer import LoragaTrainer


def train(config: Config) -> RunFolder:
    """Trains a run to its end. The same configuration again resumes it, or finds it finished.

    Raises:
        UserError: of any stage; what was reached so far stays in the run folder.
    """
    accumulation_steps(config)
    with opened(config) as (inputs, run):
        if run.finished:
            step("train", f"finished already: {run.path}")
            return run
        result = _train(inputs, run)
        # the trained model and its optimizer, before a second model is loaded
        clear_device_cache(garbage_collection=True)
        if distributed.is_main() or config.model.shard:  # a sharded base takes all of them
            difference = _difference(inputs, run, result)
        if distributed.is_main():
            _finish(inputs, run, result, difference)
        distributed.wait()
    return run


@dataclass(frozen=True)
class Result:
    """What is left of the trained model once it is saved and its memory is free.

    Args:
        logits: of the probe rows.
        losses: the last training loss and the validation loss.
        rank: `_saved_rank`.
    """

    logits: torch.Tensor
    losses: dict[str, float | None]
    rank: int | None


def _train(inputs: Inputs, run: RunFolder) -> Result:
    config = inputs.config
    trainable = initialize_run(inputs, run)
    trainer = _fit(inputs, run, trainable)
    losses = _final_losses(inputs, trainer)
    trainer.save_model(str(run.path))
    if config.method.adapter == "none" and distributed.is_main():
        inputs.tokenizer.save_pretrained(run.path)
    # as anyone will compute them: without the Trainer's autocast
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    logits = probe_logits(trained, inputs.probe_batch())
    return Result(logits, losses, _saved_rank(trainable, config))


def _saved_rank(trainable: Trainable, config: Config) -> int | None:
    """The largest rank (or width) of the adapter as it is saved, read from the built layers; None where it has none."""
    if not FORMS[config.method.adapter].ranked:
        return None
    rank = max(names.ranks(trainable.model) + names.widths(trainable.model))
    carried = trainable.start is not None and trainable.start.shift == "weights"  # it is saved beside what trained
    return rank * (2 if carried else 1)


def _fit(inputs: Inputs, run: RunFolder, trainable: Trainable) -> LoragaTrainer:
    config, options = inputs.config, inputs.config.trainer
    if distributed.is_main():
        last_whole(run.checkpoints, warn)  # sets broken ones aside, before the others look
    distributed.wait()
    checkpoint = last_whole(run.checkpoints, warn)
    done = step_of(checkpoint) if checkpoint else 0
    if distributed.is_main():
        metrics.rewind(run.metrics_file, done)
    if checkpoint:
        step("train", f"resuming after step {done}")
    recorder = Recorder(run.metrics_file, TrainingDisplay())
    callbacks: list[Any] = [recorder, FiniteGradient()]
    if trainable.start is not None and trainable.start.shift == "adapter" and options.weight_decay > 0:
        callbacks.append(FrozenStart(trainable.start))
    if config.method.adapter == "adalora":
        callbacks.append(Allocation())
    if options.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(options.early_stopping_patience))
    held_out = inputs.data.validation
    trainer = LoragaTrainer(
        model=trainable.model,
        args=training_arguments(config, run.checkpoints, inputs.device, validate=held_out is not None),
        train_dataset=inputs.train.rows,
        eval_dataset=held_out.rows if held_out else None,
        data_collator=inputs.collator,
        callbacks=callbacks,
        start=trainable.start,
        loraplus_lr_ratio=config.method.loraplus_lr_ratio,
    )
    recorder.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    try:
        if checkpoint is None or not trainer.take_up(checkpoint):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        recorder.display.stop()
    seconds = time.perf_counter() - began + run.manifest.get("training_seconds", 0.0)
    run.update_manifest(training_seconds=round(seconds, 1), steps=trainer.state.global_step)
    return trainer


def _difference(inputs: Inputs, run: RunFolder, result: Result) -> float:
    """By how much the saved model, loaded anew, differs from the trained one."""
    saved = load_trained(inputs, run)
    what = f"the model saved in {run.path} and the trained one"
    return check_equal(
        probe_logits(saved, inputs.probe_batch()), result.logits, rounding_type(inputs.config.model), what
    )


def _finish(inputs: Inputs, run: RunFolder, result: Result, difference: float) -> None:
    config = inputs.config
    loss_curves({config.method.name: metrics.read(run.metrics_file)}, run.figure_file, title=run.path.name)
    run.update_manifest(
        **result.losses,
        adapter_rank=result.rank,
        saved_difference=difference,
        base=find_source(config.model).path,
        finished=now(),
    )
    write_card(run.card_file, run.path.name, config, run.manifest)
    _say_result(run, config, result, difference)


def _final_losses(inputs: Inputs, trainer: LoragaTrainer) -> dict[str, float | None]:
    """Loss of the last logged training step, and of the validation rows for the weights that are kept."""
    points = [point for point in trainer.state.log_history if "train_runtime" not in point]  # alike in every process
    training = next((point["loss"] for point in reversed(points) if "loss" in point), None)
    if inputs.data.validation is None:
        return {"training_loss": training, "validation_loss": None}
    last = points[-1] if points else {}
    if trainer.args.load_best_model_at_end:
        validation = trainer.state.best_metric
    elif "eval_loss" in last and last["step"] == trainer.state.global_step:
        validation = last["eval_loss"]
    else:
        validation = trainer.evaluate()["eval_loss"]
    return {"training_loss": training, "validation_loss": validation}


def _say_result(run: RunFolder, config: Config, result: Result, difference: float) -> None:
    values = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.losses.items() if value is not None]
    step("train", f"finished in {duration(run.manifest['training_seconds'])}: {', '.join(values)}")
    step("saved", f"{run.path}: {_described(config, result.rank)}")
    step("saved", f"reloaded, its logits equal the trained model's to {difference:.0e}; loss curve: {run.figure_file}")


def _described(config: Config, rank: int | None) -> str:
    form = FORMS[config.method.adapter]
    if config.method.adapter == "none":
        return form.noun
    ranked = f" of rank {rank}" if config.method.adapter != "bottleneck" else f" of width {rank}"
    text = form.noun + (ranked if rank is not None else "")
    if rank is not None and config.method.moved_start:
        text += f" (2 × {rank // 2}: it carries its own start)"
    text += f" for {config.model.path}; {form.loads_in} loads it"
    if form.served and rank is not None:
        served = served_rank(rank)
        text += f", vLLM: --max-lora-rank {served}" if served else "; vLLM serves no rank this large, merge it"
    return text
