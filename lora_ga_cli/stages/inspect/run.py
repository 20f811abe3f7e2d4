"""The inspection of a run, which is kept in its folder: the gradient that it began with, and what it learned."""

from __future__ import annotations

from typing import Any

from lora_ga_cli.files import write_json
from lora_ga_cli.report.console import reason, step, warn
from lora_ga_cli.stages.inspect.adapter import inspect_adapter, show_changes
from lora_ga_cli.stages.inspect.again import words_again
from lora_ga_cli.stages.inspect.gradient import artifact_of_run, gradient_part, show_gradient, vectors_of
from lora_ga_cli.stages.inspect.loaded import why_not
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.stages.inspect.stored import FORMAT, INSPECTION_FILE, adapter_digest, read_inspection
from lora_ga_cli.stages.trained import require_finished, stored_config
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder


def inspect_run(
    run: RunFolder, *, with_base: bool, share: float = 0.9, options: InspectOptions | None = None
) -> dict[str, Any]:
    """Looks into a finished run and keeps the result in its folder.

    Args:
        with_base: also what is measured against the base's weights, which are loaded for it. Without it, what was
            measured against them before stays.
        share: of ``‖G‖²``, which the advised ranks follow.
        options: which layers are measured against the base, and another place of it.

    Returns:
        Plain data: ``format``, ``of`` (digest of the adapter, key of the gradient), ``gradient``, ``adapter``.

    Raises:
        RunError: the run has not finished; or the base is not that of the run.
    """
    require_finished(run)
    before = read_inspection(run)
    artifact = artifact_of_run(run)
    config = None if artifact is None else stored_config(run)
    found = {
        "format": FORMAT,
        "of": {"adapter_sha256": adapter_digest(run), "gradient": run.manifest.get("gradient")},
        "gradient": None
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
    check_result(run)
    artifact, figures = artifact_of_run(run), options.figures_for("", run.path)
    if artifact is not None:
        options.check_selection(artifact.factors, "the run's gradient")
    found: dict[str, Any] = dict(inspect_run(run, with_base=options.with_base, share=options.share, options=options))
    files = []
    if artifact is not None:
        again = words_again(run.manifest.get("provenance"))
        found["gradient"], file = show_gradient(artifact, options, figures, config=stored_config(run), again=again)
        files.append(file)
    else:
        step("gradient", _why_no_gradient(run))
    if found["adapter"] is not None:
        found["adapter"], file = show_changes(run.path, found["adapter"], options, figures)
        files.append(file)
    else:
        step("adapter", why_not(run, stored_config(run)))
    return {"run": run.path, **found, "figures": [file for file in files if file is not None]}


def _why_no_gradient(run: RunFolder) -> str:
    key = run.manifest.get("gradient")
    if key is None:
        return "this run began without one"
    return f"{key} is not in the cache any more: loraga estimate-grad with the run's options estimates it again"
