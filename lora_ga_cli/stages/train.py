"""Stage 3: trains a run, or resumes it where it stopped, and checks, saves and documents the result."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from transformers import EarlyStoppingCallback, PrinterCallback

from lora_ga_cli import distributed, interruption
from lora_ga_cli.config.schema import Config
from lora_ga_cli.digests import written_in
from lora_ga_cli.files import atomic_folder, read_json, write_json
from lora_ga_cli.lora.adapter_dtype import set_adapter_dtype
from lora_ga_cli.lora.export import WEIGHTS_FILE, adapts_parameters
from lora_ga_cli.lora.links import read_adapter, write_sum
from lora_ga_cli.methods.base import Link, PreparedModel, links_of, method_of
from lora_ga_cli.model.generation import base_ends
from lora_ga_cli.model.loading import find_source
from lora_ga_cli.model.probe import check_equal, probe_logits, relative_difference, rounding_type
from lora_ga_cli.model.speed import speed_of
from lora_ga_cli.model.stored import dequantized_kind
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report import console, training_loss
from lora_ga_cli.report.card import described_ends, own_parts, served_rank, serving_obstacle, write_card
from lora_ga_cli.report.console import duration, step, warn
from lora_ga_cli.report.figures import loss_curves
from lora_ga_cli.report.progress import TrainingDisplay
from lora_ga_cli.report.provenance import now
from lora_ga_cli.stages.costs import pass_limits, training_memory
from lora_ga_cli.stages.initialize import LinkBases, check_link, initialize_link, is_one_of_many, open_run
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.report import write_run_report
from lora_ga_cli.stages.room import require_room_to_train
from lora_ga_cli.stages.saved_tokenizer import save_tokenizer
from lora_ga_cli.stages.speed import compile_trained, expected_speed
from lora_ga_cli.stages.trained import load_trained
from lora_ga_cli.training import metrics
from lora_ga_cli.training.arguments import check_extra, training_arguments
from lora_ga_cli.training.callbacks import BeginsWith, LastSteps, Recorder, StepsOfRun
from lora_ga_cli.training.changed import sums_of_trained
from lora_ga_cli.training.checkpoints import last_complete, last_sound, read_mark, step_of
from lora_ga_cli.training.cost import CostMeter, begin_peak, combined, read_cost
from lora_ga_cli.training.learning_rate import check_learning_rate, describe, describe_warmup, learning_rate
from lora_ga_cli.training.optimizer_state import load_state, save_state, state_of
from lora_ga_cli.training.passes import Limits
from lora_ga_cli.training.run_files import damaged_result, reopen, result_entries
from lora_ga_cli.training.run_folder import START_AGAIN, RunFolder
from lora_ga_cli.training.trackers import Trackers, check_trackers
from lora_ga_cli.training.trainer import LoragaTrainer


def train(config: Config) -> RunFolder:
    """Trains a run to its end. With the same configuration it resumes a stopped run, and returns a finished one.

    Raises:
        UserError: any stage failed; finished checkpoints stay in the run folder.
    """
    check_learning_rate(config)
    check_trackers(config)
    if config.trainer.extra:
        check_extra(config)
        given = ", ".join(f"{name}={value}" for name, value in config.trainer.extra.items())
        warn(f"trainer.extra is passed to transformers, and is untested here: {given}")
    with open_run(config) as (inputs, run):
        if _finished(run):
            step("train", f"finished already: {run.path} (overwrite=true would train it again)")
            return run
        if config.trainer.learning_rate is None:
            step("train", describe(config, inputs.model_config))
        shortest = min(link.steps for link in links_of(method_of(config), inputs.total_steps))
        if shortened := describe_warmup(config, shortest, len(inputs.train.rows)):
            step("train", shortened)
        run.update_manifest(learning_rate=learning_rate(config, inputs.model_config))
        begin_peak(inputs.device)
        trackers = Trackers(config.trainer.report_to, run)
        with interruption.keeping(lambda: _kept(inputs, run)):
            try:
                result = _train(inputs, run, trackers)
            finally:
                trackers.end(failed=True)  # without effect after a training that came to its end
            # the trained model and its optimizer, before a second model is loaded
            clear_device_cache(garbage_collection=True)
            if distributed.is_main() or config.model.shard:  # a sharded base needs all processes
                difference = _difference(inputs, run, result)
            if distributed.is_main():
                _finish(inputs, run, result, difference)
            distributed.wait()
    return run


def _kept(inputs: Inputs, run: RunFolder) -> str:
    """What is kept of a run that is interrupted while no step is done, as a part of a sentence."""
    links = links_of(method_of(inputs.config), inputs.total_steps)
    for link in reversed(links):
        folder = run.link(link)
        if folder.finished and len(links) > 1:
            return f"{link.first_step + link.steps} of {link.total_steps} steps are kept in {folder.path}"
        checkpoint = last_complete(folder.checkpoints)
        if checkpoint is not None:
            done = link.first_step + step_of(checkpoint)
            return f"{done} of {link.total_steps} steps are kept in the checkpoint {checkpoint}"
    if any(run.link(link).init_file.exists() for link in links):
        return f"no step of training is kept, but the initialization in {run.path}"
    return ""


def _finished(run: RunFolder) -> bool:
    """Whether a run has its result. A damaged one is made again, from the last checkpoint."""
    finished = distributed.broadcast_flag(run.finished)
    what = damaged_result(run) if finished and distributed.is_main() else ""
    if not finished or not distributed.broadcast_flag(bool(what)):
        return finished
    if what:
        warn(f"{what}; the result is made again")
    reopen(run)
    distributed.wait()
    return False


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


def _train(inputs: Inputs, run: RunFolder, trackers: Trackers) -> Result:
    method = method_of(inputs.config)
    links = links_of(method, inputs.total_steps)
    if len(links) > 1:
        return _train_chain(inputs, run, links, trackers)
    prepared = initialize_link(inputs, run, links, links[0])
    trainer = _fit(inputs, run, prepared, trackers, links[0])
    _write_costs(run, links)
    losses = _final_losses(inputs, trainer)
    trackers.end()
    trainer.save_model(str(run.path))
    return Result(
        _logits(inputs, trainer), losses, method.saved_size(prepared), note=method.describe_trained(prepared.model)
    )


def _train_chain(inputs: Inputs, run: RunFolder, links: Sequence[Link], trackers: Trackers) -> Result:
    """Trains link after link, each on the base with the earlier ones, and saves their sum."""
    bases = LinkBases(inputs, run)
    with _older_objects_kept():
        for link in links:
            if not run.link(link).finished:
                interruption.stop_if_requested()
                _train_link(inputs, run, links, link, bases, trackers)
                clear_device_cache(garbage_collection=True)
    trackers.end()
    _write_costs(run, links)
    method, folders = method_of(inputs.config), [run.link(link) for link in links]
    size, error = 0, 0.0
    if distributed.is_main():
        for folder in folders:
            check_link(folder)
        changes = [read_adapter(folder.adapter) for folder in folders]
        size, error = write_sum(run.path, folders[-1].adapter, changes, max_rank=method.merged_rank)
    distributed.wait()
    logits = probe_logits(bases.base(folders, again=False), inputs.probe_batch())
    return Result(logits, read_json(folders[-1].result_file, START_AGAIN)["losses"], size, error)


@contextlib.contextmanager
def _older_objects_kept() -> Iterator[None]:
    """Collects only objects that are made inside the ``with`` block.

    A collection looks at every object of the imported libraries, which takes longer than a short link trains.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _train_link(
    inputs: Inputs, run: RunFolder, links: Sequence[Link], link: Link, bases: LinkBases, trackers: Trackers
) -> None:
    """Trains one link of a chain and saves it. After its last file is written, it is never trained again."""
    quietly = is_one_of_many(link) and link.index > 0
    with console.quiet() if quietly else contextlib.nullcontext():
        prepared = initialize_link(inputs, run, links, link, bases)
    with interruption.deferred():  # the end of a link has no checkpoint, but its result
        trainer = _fit(inputs, run, prepared, trackers, link, links[link.index - 1] if link.index else None)
        _save_link(inputs, run, link, trainer, prepared)


def _save_link(inputs: Inputs, run: RunFolder, link: Link, trainer: LoragaTrainer, prepared: PreparedModel) -> None:
    method, folder = method_of(inputs.config), run.link(link)
    losses = _final_losses(inputs, trainer)
    if distributed.is_main():
        with atomic_folder(folder.adapter) as temporary:
            method.save(prepared.model, temporary, prepared.init)
        if method.carries_state and link.index + 1 < link.count:
            assert trainer.optimizer is not None
            save_state(state_of(trainer.optimizer, prepared.model), folder.state_file)
        left = [*folder.adapter.iterdir(), *([folder.state_file] if folder.state_file.exists() else [])]
        files = written_in(folder.path, (str(file.relative_to(folder.path)) for file in left))
        result = {
            "losses": losses,
            "steps": link.steps,
            "sha256": files[f"{folder.adapter.name}/{WEIGHTS_FILE}"]["sha256"],
            "files": files,
            "metrics": metrics.state(run.metrics_file),
        }
        write_json(folder.result_file, result, digest=True)
        if not is_one_of_many(link):
            step("saved", f"{link.title}: {folder.adapter}")
    distributed.wait()


def _logits(inputs: Inputs, trainer: LoragaTrainer) -> torch.Tensor:
    """Logits of the trained model as PEFT computes them: without the Trainer's autocast, and with products of adapters
    in float32, whatever their type was in training."""
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    set_adapter_dtype(trained, None)
    return probe_logits(trained, inputs.probe_batch())


def _fit(
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
    config, options, method = inputs.config, inputs.config.trainer, method_of(inputs.config)
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
    recorder = Recorder(run.metrics_file, TrainingDisplay(), link)
    meter = CostMeter(run.link(link).cost_file, prepared.parameters, inputs.device)
    callbacks: list[Any] = [recorder, *method.callbacks(prepared.model), meter]
    if link.count > 1:
        callbacks.append(StepsOfRun(link, options, inputs.order.steps_per_epoch))
    callbacks.append(LastSteps(link))  # after what decides about evaluations
    callbacks.append(trackers.of(link))
    if options.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(options.early_stopping_patience))
    if before is not None and method.carries_state:
        earlier = run.link(before)
        check_link(earlier)
        state = method.carried_state(load_state(earlier.state_file), prepared.model, earlier.adapter)
        callbacks.append(BeginsWith(prepared.model, state))
    held_out = inputs.data.validation
    limits = _limits(inputs, run, flatten=speed_of(prepared.model).flatten)
    if distributed.is_main():
        require_room_to_train(config, run.link(link), prepared.model, link, inputs.order.steps_per_epoch)
    compile_trained(prepared.model, config)
    trainer = LoragaTrainer(
        model=prepared.model,
        args=training_arguments(
            config,
            checkpoints,
            inputs.device,
            name=run.path.name,
            learning_rate=learning_rate(config, inputs.model_config),
            validate=held_out is not None,
            link=link,
        ),
        train_dataset=inputs.train.rows,
        eval_dataset=held_out.rows if held_out else None,
        data_collator=inputs.collator_for(prepared.model),
        order=inputs.order,
        limits=limits,
        callbacks=callbacks,
        method=method,
        link=link,
        init=prepared.init,
        metrics_file=run.metrics_file,
    )
    recorder.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    began, before_training = time.perf_counter(), sums_of_trained(prepared.model)
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
    if not is_one_of_many(link) and torch.equal(before_training, sums_of_trained(prepared.model)):
        warn(
            f"{link.title or 'training'} changed no weight: every gradient was zero, or the learning rate is too small "
            "for the type of the weights"
        )
    if distributed.is_main():
        meter.write(trainer.optimizer)
    _count_seconds(run, began)
    run.update_manifest(steps=link.first_step + trainer.state.global_step)
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


def _limits(inputs: Inputs, run: RunFolder, *, flatten: bool) -> Limits:
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


def _note_forecast(inputs: Inputs, run: RunFolder) -> None:
    """Writes into the manifest the forecast of the peak of memory, on devices where the peak was measured."""
    if run.manifest.get("peak_memory_bytes") is None:
        return
    with contextlib.suppress(Unsupported):
        limits = _limits(inputs, run, flatten=expected_speed(inputs.config, inputs.device).flatten)
        run.update_manifest(forecast_peak_memory_bytes=training_memory(inputs, limits).total)


def _write_costs(run: RunFolder, links: Sequence[Link]) -> None:
    """Writes into the manifest what the complete run cost."""
    costs = [cost for link in links if (cost := read_cost(run.link(link).cost_file)) is not None]
    if costs and distributed.is_main():
        run.update_manifest(**combined(costs).entries)


def _difference(inputs: Inputs, run: RunFolder, result: Result) -> float:
    """The relative difference between the logits of the saved model, loaded again, and those of the trained one."""
    actual = probe_logits(load_trained(inputs, run), inputs.probe_batch())
    if result.truncation_error > 0:  # the truncation was asked for, and its error is printed
        return relative_difference(actual, result.logits)
    what = f"the model saved in {run.path} and the trained one"
    return check_equal(actual, result.logits, rounding_type(inputs.config.model), what)


def _finish(inputs: Inputs, run: RunFolder, result: Result, difference: float) -> None:
    config = inputs.config
    if not method_of(config).output.is_adapter or own_parts(config):
        save_tokenizer(inputs, run)
    source = find_source(config.model)
    known = base_ends(source.path, inputs.model_config, source.arguments)
    points = metrics.read(run.metrics_file)
    loss_curves({config.method.name: points}, run.figure_file, title=run.path.name)
    run.update_manifest(
        **result.losses,
        **{training_loss.STEPS: training_loss.steps_of(points)},
        adapter_rank=result.size,
        saved_difference=difference,
        adapts_parameters=adapts_parameters(run.path),
        **({"truncation_error": result.truncation_error} if result.truncation_error else {}),
        base=source.path,
        ends=described_ends(inputs.ends, known, inputs.tokenizer),
        embedding_rows=inputs.grown_rows,
        dequantized=dequantized_kind(inputs.model_config),
        **result_entries(run),
        finished=now(),
    )
    run.update_manifest(card_sha256=write_card(run.card_file, run.path.name, config, run.manifest))
    _say_result(run, config, result, difference)
    if config.trainer.report:
        write_run_report(run, inputs, before=lambda: _note_forecast(inputs, run))


def _final_losses(inputs: Inputs, trainer: LoragaTrainer) -> Losses:
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


def _say_result(run: RunFolder, config: Config, result: Result, difference: float) -> None:
    of = {"training_loss": training_loss.mean_of(run.manifest.get(training_loss.STEPS))}
    values = [
        f"{name.replace('_', ' ')} {value:.4f}{of.get(name, '')}"
        for name, value in result.losses.items()
        if value is not None
    ]
    step("train", f"finished in {duration(run.manifest['training_seconds'])}: {', '.join(values)}")
    if result.note:
        step("train", result.note)
    step("saved", f"{run.path}: {_described(config, result.size, run)}")
    output = method_of(config).output
    if output.vllm and not serving_obstacle(config, output) and (own := own_parts(config)):
        verb = "is" if len(own) == 1 else "are"
        step("saved", f"its {' and '.join(own)} {verb} beside it: vLLM with --tokenizer {run.path}")
    if result.truncation_error:
        step(
            "saved",
            f"truncated to rank {result.size}: {result.truncation_error:.2%} of the change is lost (Frobenius norm)",
        )
    step("saved", f"reloaded, its logits equal the trained model's (relative difference {difference:.0e})")
    step("saved", f"loss curve: {run.figure_file}")


def _described(config: Config, size: int | None, run: RunFolder) -> str:
    method = method_of(config)
    output = method.output
    if not output.is_adapter:
        return output.label
    text = output.label
    if size is not None:
        detail = method.describe_saved(size)
        text += f" of {output.size} {size}" + (f" ({detail})" if detail else "")
    text += f" for {config.model.path}; {output.loads_in} loads it"
    if run.manifest["adapts_parameters"]:
        text += "; merge it to serve it, because servers such as vLLM may ignore what it adds to experts"
    elif output.loads_in == "PEFT" and (obstacle := serving_obstacle(config, output)):
        text += f". {obstacle}"
    elif output.vllm and size is not None:
        served = served_rank(size)
        text += (
            f", vLLM with --max-lora-rank {served}"
            if served
            else "; vLLM does not serve a rank this large, so merge the adapter"
        )
    return text
