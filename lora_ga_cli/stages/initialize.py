"""Stage 2: the model with its adapter initialized, and the check that it still computes what its base does."""

from __future__ import annotations

import contextlib
import copy
import errno
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.data.hub_names import hub_names
from lora_ga_cli.digests import check_files, written
from lora_ga_cli.disk import FORBIDDEN, folder_problem
from lora_ga_cli.errors import Interrupted, RunError, UserError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.export import WEIGHTS_FILE
from lora_ga_cli.lora.links import Total, read_adapter
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import InitData, Link, Method, PreparedModel, links_of, method_of
from lora_ga_cli.model.probe import check_equal, probe_logits, relative_difference, rounding_type
from lora_ga_cli.model.quantization import count_parameters
from lora_ga_cli.model.targets import fingerprint
from lora_ga_cli.model.tf32 import tf32_products
from lora_ga_cli.report.console import number, step
from lora_ga_cli.report.provenance import now, provenance
from lora_ga_cli.stages.estimate import estimate, sample_batches
from lora_ga_cli.stages.experts import say_frozen_experts
from lora_ga_cli.stages.inputs import Inputs, base_identity, check_folders, join_processes, prepare_inputs
from lora_ga_cli.stages.left_out import listed, say_left_out
from lora_ga_cli.stages.speed import use_adapter_dtype
from lora_ga_cli.stages.together import check_together
from lora_ga_cli.stages.useful_rank import warn_of_unused_rank
from lora_ga_cli.training.manifest import FORMAT
from lora_ga_cli.training.run_files import note_start, stored_start
from lora_ga_cli.training.run_folder import (
    START_AGAIN,
    LinkFolder,
    RunFolder,
    check_run_folder,
    find_run,
    settings,
    with_stored_rows,
    working_folder,
)

UNWRITABLE = (*FORBIDDEN, errno.ENOSPC)


def initialize(config: Config) -> RunFolder:
    """Creates a run folder and stores the initialization in it, from which `train` continues.

    Raises:
        UserError: as `initialize_link`; RunError also if the folder holds another run.
    """
    with open_run(config) as (inputs, run):
        links = links_of(method_of(config), inputs.total_steps)
        initialize_link(inputs, run, links, links[0])
        step("init", f"stored in {run.path}; loraga train with the same options continues from it")
    return run


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[tuple[Inputs, RunFolder]]:
    """Opens a configuration's run folder, keeps other processes out of it, and loads everything except weights.

    Raises:
        RunError: the folder holds another run, or another process works on it.
        TargetError: the run is too short for the method.
        UserError: as `prepare_inputs`.
    """
    run = find_run(config)
    writes = not _is_only_read(run, config)
    check_folders(config, ("output_dir", "cache_dir") if writes else ("cache_dir",))
    join_processes(config)
    with run.locked() if writes else contextlib.nullcontext(), tf32_products(config.trainer.tf32):
        if writes:
            check_together(config, run)
        if distributed.is_main():
            check_run_folder(config, run)
        distributed.wait()
        inputs = prepare_inputs(with_stored_rows(config, run))
        method_of(config).check_steps(inputs.total_steps)
        method_of(config).check_model(inputs.empty_model)
        _check_rows(inputs, run)
        if writes:
            _write_manifest(inputs, run, config)
        with _failure_kept(run):
            yield inputs, run


def _is_only_read(run: RunFolder, config: Config) -> bool:
    """Whether a run has finished in a folder that cannot be written. A command that asks for it again needs not to."""
    problem = None if config.overwrite else folder_problem(run.path)
    return problem is not None and problem.errno in UNWRITABLE and run.finished


@contextlib.contextmanager
def _failure_kept(run: RunFolder) -> Iterator[None]:
    """Writes into the manifest what a command failed with, for those who look at the run later."""
    if run.manifest.get("failed") and folder_problem(run.path) is None:
        run.update_manifest(failed=None)
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        with contextlib.suppress(OSError, UserError):  # a full disk or a damaged manifest, which may be the error
            run.update_manifest(failed=lines[0] if lines else type(error).__name__)
        raise


def _check_rows(inputs: Inputs, run: RunFolder) -> None:
    """Checks that the rows are those that the run began with, if it has begun.

    Raises:
        RunError: they are not.
    """
    stored, actual = run.manifest.get("data"), _data_identity(inputs)
    if stored is not None:
        changed = [name for name, split in actual.items() if stored.get(name, {}).get("sha256") != split["sha256"]]
        if changed:
            raise RunError(
                f"{run.path} began with other {' and '.join(changed)} rows than the data set has now: give another "
                "name=, or overwrite=true, which renames the old folder"
            )


def _write_manifest(inputs: Inputs, run: RunFolder, given: Config) -> None:
    """Writes the configuration of a run, and for a new run also its manifest: options, rows, base and versions.

    Args:
        given: the configuration without what was found in the rows. The same command gives it again.
    """
    run.write_config(inputs.config)
    if run.manifest.get("data") is None:
        config = inputs.config
        run.update_manifest(
            files={run.config_file.name: written(run.config_file)} if distributed.is_main() else None,
            format=FORMAT,
            settings=settings(given),
            seed=config.seed,
            total_steps=inputs.total_steps,
            data=_data_identity(inputs),
            hub_datasets=hub_names(config.dataset),
            label_names=inputs.data.label_names,
            base_identity=base_identity(config),
            started=now(),
            working_folder=working_folder(run),
            provenance=provenance(),
        )


def _data_identity(inputs: Inputs) -> dict[str, Any]:
    splits = {"train": inputs.data.train, "validation": inputs.data.validation}
    return {
        name: {
            "rows": len(split.rows),
            "sha256": split.sha256,
            "skipped": split.skipped,
            "truncated": split.truncated,
        }
        for name, split in splits.items()
        if split is not None
    }


def load_base(inputs: Inputs, run: RunFolder) -> PreTrainedModel:
    """The original base model, ready to be trained on.

    Raises:
        RunError: its weights are not those that the run was started with.
    """
    model = inputs.load_model(to_train=True)
    if method_of(inputs.config).output.is_adapter:
        actual = fingerprint(method_of(inputs.config).targets(model))
        if run.manifest.get("base_fingerprint", actual) != actual:
            raise RunError(
                f"the base model is not the one that {run.path} was started with: give that one, or start the run "
                "again with overwrite=true"
            )
        run.update_manifest(base_fingerprint=actual)
    return model


KEPT_BYTES = 2 * 2**30
"""The largest float32 base of which a chain keeps a copy in memory, beside the one that trains. The sum of the links
before is kept too then, in float64 on the CPU; of a larger base, one layer at a time is computed."""


class LinkBases:
    """The base of every link of a run: the original one with the links that are trained already.

    A base is read from the disk once where a second one fits in memory beside it. Only the links that were trained
    since the last base was asked for are read.
    """

    def __init__(self, inputs: Inputs, run: RunFolder):
        self.inputs, self.run = inputs, run
        self._original: PreTrainedModel | None = None
        self._total = Total()

    def base(self, earlier: Sequence[LinkFolder], *, again: bool) -> PreTrainedModel:
        """The base with earlier links on it.

        Args:
            earlier: the folders of all trained links; those of the call before are among them.
            again: whether a base will be asked for again.

        Raises:
            RunError: the base or an adapter is not what the run was started with.
        """
        model = self._original if self._original is not None else load_base(self.inputs, self.run)
        if self._original is None:
            kept = again and _fits_twice(model)
            self._original, self._total = model if kept else None, Total(keep_products=kept)
        if self._original is not None and again:
            model = copy.deepcopy(self._original)
        for folder in earlier[self._total.links :]:
            check_link(folder)
            self._total.add(read_adapter(folder.adapter))
        self._total.apply(model)
        torch.manual_seed(self.inputs.config.seed)
        return model


def _fits_twice(model: PreTrainedModel) -> bool:
    parameters = list(model.parameters())
    plain = all(item.dtype == torch.float32 and not isinstance(item.data, DTensor) for item in parameters)
    return plain and sum(item.numel() * item.element_size() for item in parameters) <= KEPT_BYTES


def check_link(folder: LinkFolder) -> None:
    """Checks that what a link left is what was saved when it was trained.

    Raises:
        DamagedFile
    """
    result = read_json(folder.result_file, START_AGAIN)
    files = result.get("files") or {f"{folder.adapter.name}/{WEIGHTS_FILE}": {"sha256": result["sha256"]}}
    check_files(folder.path, files, START_AGAIN)


def initialize_link(
    inputs: Inputs, run: RunFolder, links: Sequence[Link], link: Link, bases: LinkBases | None = None
) -> PreparedModel:
    """Loads the base with all earlier links and puts the method on it.

    If the run has an initialization already, exactly this one is installed again.

    Args:
        bases: where bases come from, if several links are trained in this session.

    Raises:
        TargetError, GradientError, RunError, ModelError
        EqualityError: before the first step, the model does not compute what its base computes.
    """
    method, folder = method_of(inputs.config), run.link(link)
    if link.title:
        step("init", link.title)
    earlier = [run.link(other) for other in links[: link.index]]
    model = (bases or LinkBases(inputs, run)).base(earlier, again=bases is not None)
    if link.index == 0:
        say_frozen_experts(method, model)
    start = stored_start(run, folder)
    stored = LoraInit.load(start) if start is not None else None
    # of many links, the first tells for all of them whether the method leaves the logits as they are
    compared = method.output.is_adapter and (link.index == 0 or not is_one_of_many(link))
    expected = probe_logits(model, inputs.probe_batch()) if compared else None
    if compared and not link.index:
        say_left_out(model, inputs.config)

    def gradient() -> GradientArtifact:
        merged = [read_json(other.result_file, START_AGAIN)["sha256"] for other in earlier]
        artifact = estimate(inputs, model, merged=merged)
        if link.index == 0:
            run.update_manifest(gradient=artifact.key)
        return artifact

    data = InitData(gradient, lambda: sample_batches(inputs))
    prepared = method.prepare(model, link=link, data=data, stored=stored)
    use_adapter_dtype(prepared.model, inputs.config)
    if link.index == 0:
        warn_of_unused_rank(method, prepared.model)
    difference = None
    if expected is not None:
        actual = probe_logits(prepared.model, inputs.probe_batch())
        if method.output.starts_as_base:
            what = "the initialized model and its base"
            difference = check_equal(actual, expected, rounding_type(inputs.config.model), what)
        else:
            difference = relative_difference(actual, expected)
    distributed.wait()  # until every process has seen whether an initialization is stored
    if prepared.init is not None and stored is None and distributed.is_main():
        folder.path.mkdir(parents=True, exist_ok=True)
        prepared.init.save(folder.init_file)
        note_start(run, folder.init_file)
    if compared:
        run.update_manifest(init_difference=difference)
    _say_initialized(method, prepared, difference, restored=stored is not None)
    if prepared.init is not None:
        _say_begun_as_lora(prepared.init.as_lora)
    return prepared


def _say_begun_as_lora(reasons: Mapping[str, str]) -> None:
    """Names the layers that do not begin as the method says."""
    for reason in sorted(set(reasons.values())):
        names = [name for name in reasons if reasons[name] == reason]
        step("init", f"{listed(names)}: {reason}, so they begin as LoRA does (A at random, B zero)")


MANY_LINKS = 5
"""A chain of more links prints one line for each."""


def is_one_of_many(link: Link) -> bool:
    """Whether a run has so many links that each of them gets one line on the screen."""
    return link.count > MANY_LINKS


def _say_initialized(method: Method, prepared: PreparedModel, difference: float | None, *, restored: bool) -> None:
    parts = [method.config.method.name, method.describe(prepared.model)]
    parts.append("initialization restored" if restored else method.describe_init())
    how = "equal" if method.output.starts_as_base else "already differ from"
    equal = "" if difference is None else f"; logits {how} the base's (relative difference {difference:.0e})"
    if method.output.is_adapter:
        step("init", ", ".join(part for part in parts if part) + equal)
    total, trained = count_parameters(prepared.model), prepared.parameters
    step("init", f"{number(trained)} of {number(total)} parameters train ({trained / total:.2%})")
