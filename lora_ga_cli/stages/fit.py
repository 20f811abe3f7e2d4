"""Trains the model of a run, or of one link of a chain, and resumes it from its last complete checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from lora_ga_cli import distributed, interruption
from lora_ga_cli.json_files import read_json
from lora_ga_cli.methods.base import Link, PreparedModel, method_of
from lora_ga_cli.model.speed import speed_of
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.progress import TrainingDisplay
from lora_ga_cli.stages.costs import pass_limits
from lora_ga_cli.stages.initialize import check_link, is_one_of_many
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.room import require_room_to_train
from lora_ga_cli.stages.speed import compile_trained
from lora_ga_cli.training import metrics
from lora_ga_cli.training.arguments import training_arguments
from lora_ga_cli.training.callbacks import BeginsWith, LastSteps, Recorder, StepsOfRun
from lora_ga_cli.training.changed import sums_of_trained
from lora_ga_cli.training.checkpoints import last_complete, last_sound, read_mark, step_of
from lora_ga_cli.training.cost import CostMeter
from lora_ga_cli.training.learning_rate import learning_rate
from lora_ga_cli.training.optimizer_state import load_state
from lora_ga_cli.training.passes import Limits
from lora_ga_cli.training.run_folder import START_AGAIN, RunFolder
from lora_ga_cli.training.trackers import Trackers
from lora_ga_cli.training.trainer import LoragaTrainer


def fit(
    inputs: Inputs,
    run: RunFolder,
    prepared: PreparedModel,
    trackers: Trackers,
    link: Link,
    before: Link | None = None,
) -> LoragaTrainer:
    """Trains a model, or resumes its training.

    Args:
        trackers: the services that are told about it.
        before: the link that was trained before this one.
    """
    model, method = prepared.model, method_of(inputs.config)
    checkpoint = _checkpoint_to_resume(run, link, before)
    recorder = Recorder(run.metrics_file, TrainingDisplay(), link)
    meter = CostMeter(run.link(link).cost_file, prepared.parameters, inputs.device)
    callbacks = [recorder, *method.callbacks(model), meter, *_deciding_callbacks(inputs, link), trackers.of(link)]
    if inputs.config.trainer.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(inputs.config.trainer.early_stopping_patience))
    if before is not None and method.carries_state:
        earlier = run.link(before)
        check_link(earlier)
        state = method.carried_state(load_state(earlier.state_file), model, earlier.adapter)
        callbacks.append(BeginsWith(model, state))
    limits = limits_of_run(inputs, run, flatten=speed_of(model).flatten)
    if distributed.is_main():
        require_room_to_train(inputs.config, run.link(link), model, link, inputs.order.steps_per_epoch)
    compile_trained(model, inputs.config)
    trainer = _trainer(inputs, run, prepared, link, limits, callbacks)
    recorder.trainer = trainer
    began, before_training = time.perf_counter(), sums_of_trained(model)
    try:
        if checkpoint is None or not trainer.restore_finished(checkpoint):
            with interruption.deferred():
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except interruption.Interruption:
        _count_seconds(run, began)
        raise
    finally:
        recorder.display.stop()
    # the first of many short links may lie in the warm-up
    if not is_one_of_many(link) and torch.equal(before_training, sums_of_trained(model)):
        warn(
            f"{link.title or 'training'} changed no weight: every gradient was zero, or the learning rate is too small "
            "for the type of the weights"
        )
    if distributed.is_main():
        meter.write(trainer.optimizer)
    _count_seconds(run, began)
    run.update_manifest(steps=link.first_step + trainer.state.global_step)
    return trainer


def _checkpoint_to_resume(run: RunFolder, link: Link, before: Link | None) -> Path | None:
    """The last complete checkpoint of a link, to whose step the metrics are shortened; None if there is none."""
    checkpoints = run.link(link).checkpoints
    if distributed.is_main():
        _set_damaged_aside(checkpoints, link)  # before the other processes look
    distributed.wait()
    checkpoint = last_complete(checkpoints)
    done = link.first_step + (step_of(checkpoint) if checkpoint else 0)
    if distributed.is_main():
        _check_metrics(run, checkpoint, before)
        metrics.rewind(run.metrics_file, done)
    if checkpoint:
        step("train", f"resuming after step {done}")
    return checkpoint


def _deciding_callbacks(inputs: Inputs, link: Link) -> Iterator[TrainerCallback]:
    """What decides at which steps a link logs, evaluates and saves, beside the Trainer."""
    if link.count > 1:
        yield StepsOfRun(link, inputs.config.trainer, inputs.order.steps_per_epoch)
    yield LastSteps(link)  # after what decides about evaluations


def _trainer(
    inputs: Inputs,
    run: RunFolder,
    prepared: PreparedModel,
    link: Link,
    limits: Limits,
    callbacks: Sequence[TrainerCallback],
) -> LoragaTrainer:
    config, held_out = inputs.config, inputs.data.validation
    arguments = training_arguments(
        config,
        run.link(link).checkpoints,
        inputs.device,
        name=run.path.name,
        learning_rate=learning_rate(config, inputs.model_config),
        validate=held_out is not None,
        link=link,
    )
    trainer = LoragaTrainer(
        model=prepared.model,
        args=arguments,
        train_dataset=inputs.train.rows,
        eval_dataset=held_out.rows if held_out else None,
        data_collator=inputs.collator_for(prepared.model),
        order=inputs.order,
        limits=limits,
        callbacks=list(callbacks),
        method=method_of(config),
        link=link,
        init=prepared.init,
        metrics_file=run.metrics_file,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _set_damaged_aside(checkpoints: Path, link: Link) -> None:
    """Renames incomplete and damaged checkpoints, and says so if none is left."""
    told: list[str] = []
    sound = last_sound(checkpoints, told.append)
    for text in told:
        warn(text)
    if told and sound is None:
        what = f"{link.title} begins" if link.title else "training begins"
        warn(f"no earlier checkpoint is left: {what} again at step {link.first_step + 1}")


def _count_seconds(run: RunFolder, began: float) -> None:
    """Adds the time of this session's training to that of the run."""
    seconds = time.perf_counter() - began + run.manifest.get("training_seconds", 0.0)
    run.update_manifest(training_seconds=round(seconds, 1))


def _check_metrics(run: RunFolder, checkpoint: Path | None, before: Link | None) -> None:
    """Says so if the metrics lost points that were there when the checkpoint was written, or the link before ended."""
    if checkpoint is not None:
        mark = read_mark(checkpoint)
        expected = mark.metrics if mark else None
    else:
        expected = read_json(run.link(before).result_file, START_AGAIN).get("metrics") if before is not None else None
    if expected is not None and (what := metrics.damage(run.metrics_file, expected)):
        warn(what)


def limits_of_run(inputs: Inputs, run: RunFolder, *, flatten: bool) -> Limits:
    """What fits into a pass: the same when a run is resumed, whatever memory is free then."""
    automatic = inputs.config.trainer.max_tokens == "auto"
    stored = run.manifest.get("pass_tokens") if automatic else None
    if stored is not None:
        return Limits(inputs.config.trainer.micro_batch_size, stored, padded=not flatten)
    limits = pass_limits(inputs, flatten=flatten)
    if automatic:
        run.update_manifest(pass_tokens=limits.tokens)
        distributed.wait()
    return limits
