"""The inspection of a run, which is kept in its folder: the gradient that it began with, and what it learned."""

from __future__ import annotations

from typing import Any

from lora_ga_cli.json_files import write_json
from lora_ga_cli.report.console import reason, step, warn
from lora_ga_cli.stages.inspect.adapter import inspect_adapter, show_changes
from lora_ga_cli.stages.inspect.again import words_again
from lora_ga_cli.stages.inspect.gradient import gradient_of_run, gradient_part, show_gradient, vectors_of
from lora_ga_cli.stages.inspect.loaded import why_not
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.stages.inspect.stored import FORMAT, INSPECTION_FILE, adapter_digest, read_inspection
from lora_ga_cli.stages.trained import require_finished, stored_config
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder


def inspect_run(
    run: RunFolder,
    *,
    with_base: bool,
    share: float = 0.9,
    options: InspectOptions | None = None,
    with_kept: bool = True,
) -> dict[str, Any]:
    """Looks into a finished run and keeps the result in its folder.

    What an earlier inspection of the same adapter and gradient has found stays where it cannot be found again: what
    came from a gradient that the cache does not have any more, and, without `with_base`, from the base.

    Args:
        with_base: also what is measured against the base's weights, which are loaded for it.
        share: of ``‖G‖²``, which the advised ranks follow.
        options: which layers are measured against the base, and another place of it.
        with_kept: False where there is no earlier inspection that can be used, as the caller knows.

    Returns:
        Plain data: ``format``, ``of`` (digest of the adapter, key of the gradient), ``gradient``, ``adapter``.

    Raises:
        RunError: the run has not finished; or the base is not that of the run.
        DamagedFile: a file of the adapter, or of what it began with, is not what was written.
    """
    require_finished(run)
    before = read_inspection(run) if with_kept else None
    artifact, key = gradient_of_run(run).artifact, run.manifest.get("gradient")
    kept_gradient = None if before is None else before["gradient"]
    config = None if artifact is None else stored_config(run)
    found = {
        "format": FORMAT,
        "of": {"adapter_sha256": adapter_digest(run), "gradient": key},
        "gradient": kept_gradient
        if artifact is None
        else gradient_part(
            artifact,
            share=share,
            vectors=vectors_of(config),
            config=config,
            again=words_again(run.manifest.get("provenance")),
        ),
        "adapter": inspect_adapter(
            run,
            with_base=with_base,
            artifact=artifact,
            options=options,
            kept=None if before is None else before["adapter"],
        ),
    }
    file = run.path / INSPECTION_FILE
    try:
        write_json(file, found, digest=True)
    except OSError as error:
        warn(f"what was found is not kept: {file}: {reason(error)}")
    return found


def show_run(run: RunFolder, options: InspectOptions) -> dict[str, Any]:
    """Looks into a run, prints what it found, and draws figures.

    Raises:
        RunError: the run has not finished.
    """
    require_finished(run)
    config = stored_config(run)
    refused = why_not(run, config)
    if refused:
        check_result(run)  # of an adapter that is inspected, `load` does
    gradient, figures = gradient_of_run(run), options.figures_for("", run.path)
    artifact = gradient.artifact
    if gradient.damage:
        warn(gradient.damage)
    if artifact is not None:
        options.check_selection(artifact.factors, "the run's gradient")
    found: dict[str, Any] = dict(inspect_run(run, with_base=options.with_base, share=options.share, options=options))
    files = []
    if artifact is not None:
        again = words_again(run.manifest.get("provenance"))
        found["gradient"], file = show_gradient(artifact, options, figures, config=config, again=again)
        files.append(file)
    else:
        step("gradient", gradient.absent)
        if found["gradient"] is not None:
            step("gradient", f"what was found of it before is kept in {run.path / INSPECTION_FILE}")
            layers = found["gradient"]["layers"]
            found["gradient"] |= {"layers": {name: layers[name] for name in options.selected(layers)}}
    if found["adapter"] is not None:
        found["adapter"], file = show_changes(run.path, found["adapter"], options, figures)
        files.append(file)
    else:
        step("adapter", refused)
    return {"run": run.path, **found, "figures": [file for file in files if file is not None]}
