"""Trains a run that is a chain of links: each on the base with the earlier ones, with its own optimizer."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

from accelerate.utils.memory import clear_device_cache

from lora_ga_cli import distributed, interruption
from lora_ga_cli.digests import written_in
from lora_ga_cli.files import atomic_folder
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.lora.export import WEIGHTS_FILE
from lora_ga_cli.lora.links import read_adapter, write_sum
from lora_ga_cli.methods.base import Link, PreparedModel, method_of
from lora_ga_cli.model.probe import probe_logits
from lora_ga_cli.report import console
from lora_ga_cli.report.console import step
from lora_ga_cli.stages.fit import fit
from lora_ga_cli.stages.initialize import LinkBases, check_link, initialize_link, is_one_of_many
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.stages.training_result import Result, final_losses, write_costs
from lora_ga_cli.training import metrics
from lora_ga_cli.training.optimizer_state import save_state, state_of
from lora_ga_cli.training.run_folder import START_AGAIN, RunFolder
from lora_ga_cli.training.trackers import Trackers
from lora_ga_cli.training.trainer import LoragaTrainer


def train_chain(inputs: Inputs, run: RunFolder, links: Sequence[Link], trackers: Trackers) -> Result:
    """Trains link after link, each on the base with the earlier ones, and saves their sum."""
    bases = LinkBases(inputs, run)
    with _older_objects_kept():
        for link in links:
            if not run.link(link).finished:
                interruption.stop_if_requested()
                _train_link(inputs, run, links, link, bases, trackers)
                clear_device_cache(garbage_collection=True)
    trackers.end()
    write_costs(run, links)
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
        trainer = fit(inputs, run, prepared, trackers, link, links[link.index - 1] if link.index else None)
        _save_link(inputs, run, link, trainer, prepared)


def _save_link(inputs: Inputs, run: RunFolder, link: Link, trainer: LoragaTrainer, prepared: PreparedModel) -> None:
    method, folder = method_of(inputs.config), run.link(link)
    losses = final_losses(inputs, trainer)
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
