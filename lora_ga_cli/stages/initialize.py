"""Stage 2: the model with its adapter at the start, and the proof that nothing has changed yet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lora_ga_cli import distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError
from lora_ga_cli.gradient.key import rows_hash
from lora_ga_cli.lora.offset import Start
from lora_ga_cli.methods import adalora, names
from lora_ga_cli.methods.build import Trainable, build
from lora_ga_cli.methods.forms import FORMS
from lora_ga_cli.model.probe import check_equal, probe_logits, rounding_type
from lora_ga_cli.model.quantization import count_parameters
from lora_ga_cli.model.targets import find_targets, fingerprint
from lora_ga_cli.report.console import number, step
from lora_ga_cli.report.provenance import now, provenance
from lora_ga_cli.stages.estimate import estimate
from lora_ga_cli.stages.inputs import Inputs, base_identity, join_processes, prepare_inputs
from lora_ga_cli.training.arguments import total_steps
from lora_ga_cli.training.run_folder import RunFolder, claim, find_run, settings


def initialize(config: Config) -> RunFolder:
    """Begins a run: its folder, and in it the start from which `train` goes on.

    Raises:
        UserError: as `initialize_run`; RunError also if the folder holds another run.
    """
    with opened(config) as (inputs, run):
        initialize_run(inputs, run)
        step("init", f"stored in {run.path}; go on with loraga train")
    return run


@contextlib.contextmanager
def opened(config: Config) -> Iterator[tuple[Inputs, RunFolder]]:
    """Holds a configuration's run folder against other runs, with everything loaded for it but weights.

    Raises:
        RunError: the folder holds another run, or another process works on it.
        TargetError: the run is too short for the method's schedule.
        UserError: as `prepare_inputs`.
    """
    run = find_run(config)
    join_processes(config)
    with run.locked():
        if distributed.is_main():
            claim(config, run)
        distributed.wait()
        inputs = prepare_inputs(config)
        if config.method.adapter == "adalora":
            adalora.schedule(config.method.adalora, total_steps(config, len(inputs.train.rows)))
        _begin(inputs, run)
        yield inputs, run


def _begin(inputs: Inputs, run: RunFolder) -> None:
    """Notes whose run this is, and once, what it was made from."""
    stored, found = run.manifest.get("data"), _data_identity(inputs)
    if stored is not None:
        changed = [name for name, split in found.items() if stored.get(name, {}).get("sha256") != split["sha256"]]
        if changed:
            raise RunError(
                f"{run.path} began with other {' and '.join(changed)} rows than the data set has now: give another "
                "name=, or overwrite=true to set it aside"
            )
    run.write_config(inputs.config)
    if stored is None:
        config = inputs.config
        run.update_manifest(
            settings=settings(config),
            seed=config.seed,
            data=found,
            label_names=inputs.data.label_names,
            base_identity=base_identity(config),
            started=now(),
            provenance=provenance(),
        )


def _data_identity(inputs: Inputs) -> dict[str, Any]:
    splits = {"train": inputs.data.train, "validation": inputs.data.validation}
    return {
        name: {
            "rows": len(split.rows),
            "sha256": rows_hash(split.rows),
            "skipped": split.skipped,
            "truncated": split.truncated,
        }
        for name, split in splits.items()
        if split is not None
    }


def initialize_run(inputs: Inputs, run: RunFolder) -> Trainable:
    """Loads the base and puts the method on it; a start that the run has already is installed again, to the bit.

    Raises:
        TargetError, GradientError, RunError, ModelError
        EqualityError: the model computes something else than the base before its first step.
    """
    config = inputs.config
    model = inputs.load_model(to_train=True)
    stored = Start.load(run.start_file) if run.start_file.exists() else None
    steps = total_steps(config, len(inputs.train.rows))
    if config.method.adapter == "none":
        trainable = build(model, config, steps=steps, artifact=lambda: estimate(inputs, model), stored=None)
    else:
        pristine = fingerprint(find_targets(model, config.target_modules))
        if run.manifest.get("base_fingerprint", pristine) != pristine:
            raise RunError(
                f"the base model changed since {run.path} began: give the one it began on, or overwrite=true to start "
                "again"
            )
        expected = probe_logits(model, inputs.probe_batch())
        trainable = build(model, config, steps=steps, artifact=lambda: estimate(inputs, model), stored=stored)
        difference = None
        if FORMS[config.method.adapter].neutral:
            found = probe_logits(trainable.model, inputs.probe_batch())
            what = "the model at its start and the base"
            difference = check_equal(found, expected, rounding_type(config.model), what)
        distributed.wait()  # until every process has seen whether there is a start
        if trainable.start is not None and stored is None and distributed.is_main():
            trainable.start.save(run.start_file)
        run.update_manifest(base_fingerprint=pristine, start_difference=difference)
        start = "restored" if stored else _started(config)
        equal = "" if difference is None else f"; logits equal the base's to {difference:.0e}"
        step("init", f"{config.method.name}, {_size(trainable, config)}, {start}{equal}")
    total = count_parameters(trainable.model)
    step(
        "init",
        f"{number(trainable.parameters)} of {number(total)} parameters train ({trainable.parameters / total:.2%})",
    )
    return trainable


def _started(config: Config) -> str:
    method = config.method
    if not FORMS[method.adapter].neutral:
        return "started at random, so the model differs from its base"
    directions = {
        "kaiming": "zero",
        "gradient": f"the gradient's directions ({method.direction}, scale {method.scale})",
        "pissa": "the weights' leading directions",
        "gaussian": f"random directions (scale {method.scale})",
    }
    taken_off = f", taken off in the {config.shift}" if method.moved_start else ""
    return f"started at {directions[method.start]}{taken_off}"


def _size(trainable: Trainable, config: Config) -> str:
    """What trains, as the built layers have it rather than as it was asked for."""
    model = trainable.model
    of_a, widths, prefixes = names.ranks(model), names.widths(model), names.prefixes(model)
    if of_a:
        carried = trainable.start is not None and trainable.start.shift == "adapter"
        ranks = sorted({rank // (2 if carried else 1) for rank in of_a})
        text = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
        if config.method.adapter == "adalora":
            text += f", to fall to a mean of {config.rank}"
        return f"{text}, {len(of_a)} layers"
    if widths:
        return f"width {widths[0]}, {len(widths)} adapters"
    return f"{prefixes[0]} vectors, {len(prefixes)} {'layers' if len(prefixes) > 1 else 'layer'}"
