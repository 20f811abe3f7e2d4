"""Stage 3: trains a run, or resumes it where it stopped, and checks, saves and documents the result."""

from __future__ import annotations

from accelerate.utils.memory import clear_device_cache

from lora_ga_cli import distributed, interruption
from lora_ga_cli.config.schema import Config
from lora_ga_cli.methods.base import links_of, method_of
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.stages.finish import check_saved, finish
from lora_ga_cli.stages.fit import fit
from lora_ga_cli.stages.initialize import initialize_link, open_run
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.train_chain import train_chain
from lora_ga_cli.stages.training_result import Result, final_losses, trained_logits, write_costs
from lora_ga_cli.training.arguments import check_extra
from lora_ga_cli.training.checkpoints import last_complete, step_of
from lora_ga_cli.training.cost import begin_peak
from lora_ga_cli.training.learning_rate import check_learning_rate, describe, describe_warmup, learning_rate
from lora_ga_cli.training.run_files import damaged_result, reopen
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.trackers import Trackers, check_trackers


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
                difference = check_saved(inputs, run, result)
            if distributed.is_main():
                finish(inputs, run, result, difference)
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


def _train(inputs: Inputs, run: RunFolder, trackers: Trackers) -> Result:
    method = method_of(inputs.config)
    links = links_of(method, inputs.total_steps)
    if len(links) > 1:
        return train_chain(inputs, run, links, trackers)
    prepared = initialize_link(inputs, run, links, links[0])
    trainer = fit(inputs, run, prepared, trackers, links[0])
    write_costs(run, links)
    losses = final_losses(inputs, trainer)
    trackers.end()
    trainer.save_model(str(run.path))
    note = method.describe_trained(prepared.model)
    return Result(trained_logits(inputs, trainer), losses, method.saved_size(prepared), note=note)
