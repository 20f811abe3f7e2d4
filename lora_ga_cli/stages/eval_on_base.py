"""What `loraga eval BASE --adapters A,B` scores: a base, and adapters on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.config.compose import fits_run
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput, RunError
from lora_ga_cli.lora.description import described
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.methods.loading import is_custom_adapter
from lora_ga_cli.model.loading import adapter_refusal
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.stages.eval_targets import (
    HUB_NAME,
    EvalTarget,
    bundled_model,
    composed,
    is_run,
    of_adapter,
    of_model,
    options_for_each,
    target_of_run,
)
from lora_ga_cli.stages.inputs import base_identity
from lora_ga_cli.stages.trained import config_of
from lora_ga_cli.training.run_folder import RunFolder


def targets_on_base(base: str, adapters: Sequence[str], options: Sequence[str]) -> list[EvalTarget]:
    """A base and adapters on it: runs, or folders of adapters.

    The base is scored on what the first adapter that shares it is scored on, and in the way of its run; a classifier
    has no trained head without an adapter, and is not among the targets.

    Args:
        options: as for `find_target`.

    Raises:
        InvalidInput: all that is wrong with the options and adapters together.
    """
    folder = resolve_path(base)
    is_bundled = bundled_model(base)
    place = str(folder.resolve()) if folder.is_dir() and not is_bundled else base
    faults = [
        Fault("command line", f"{item}: the base is named already, {base}", "leave it out")
        for item in options
        if item.startswith("model.path=")
    ]
    if folder.is_dir() and adapter_refusal(folder):
        faults.append(Fault("command line", f"{base} holds an adapter, and no base", "loraga eval BASE --adapters A,B"))
    elif not folder.is_dir() and not HUB_NAME.fullmatch(base):
        faults.append(Fault("command line", f"{base}: no such base", "a model's folder, or ORG/MODEL on the hub"))
    found: dict[str, EvalTarget] = {}
    given = {} if faults else options_for_each(adapters, options)
    for text in sorted(given, key=lambda text: not is_run(text)):  # runs first, whose rows others may take
        try:
            found[text] = _on_base(text, place, given[text], [target for target in found.values() if target.run])
        except InvalidInput as error:
            faults += error.faults
        except RunError as error:
            faults.append(Fault("--adapters", str(error)))
    if faults:
        raise InvalidInput(list(dict.fromkeys(faults)))
    targets = [found[text] for text in dict.fromkeys(adapters)]
    first = next((target for target in targets if not target.config.model.new_tokens), targets[0])
    if first.config.model.task == "sequence_classification":
        step("eval", f"{base} is not scored beside its adapters: without one, it has no trained head")
        return targets
    name = folder.resolve().name if folder.is_dir() else place.replace("/", "--")
    for other in targets:
        if other is not first and _rows(other.config) != _rows(first.config):
            warn(f"{base} is scored on the rows of {first.name}, and {other.name} on others")
    return [of_model(name, first.config), *targets]


def _rows(config: Config) -> dict[str, Any]:
    """What decides on which rows a target is scored, as plain data."""
    return config.model_dump(mode="json", include={"dataset", "eval"})


def _on_base(text: str, base: str, options: Sequence[str], runs: Sequence[EvalTarget]) -> EvalTarget:
    """An adapter on a base that is named.

    Args:
        runs: those on the same base. An adapter for which no rows are named is scored on those of the first one.

    Raises:
        InvalidInput: it is no adapter, or says that it is of another base; or wrong options.
        RunError: a run that has not finished.
    """
    folder = Path(text).expanduser()
    if (folder / "manifest.json").is_file():
        run = RunFolder(folder)
        config = config_of(run, options, base)
        if not method_of(config).output.is_adapter:
            what = f"{text} is a complete model, and no adapter"
            raise InvalidInput([Fault("--adapters", what, f"loraga eval {base} {text}")])
        _check_base_of_run(run, config)
        return target_of_run(run, config)
    if not (is_custom_adapter(folder) or (folder / "adapter_config.json").is_file()):
        what = "no adapter" if folder.exists() else "no such run folder or adapter"
        raise InvalidInput([Fault("--adapters", f"{text}: {what}", "a run's folder, or one with adapter_config.json")])
    first = next((run for run in runs if not run.config.model.new_tokens), None)
    if first is None or not all(map(fits_run, options)):
        config = composed([*options, f"model.path={base!r}"], None)
    else:
        config = first.config
        step("eval", f"{text} is scored on the rows of {first.name}")
    if (folder / "adapter_config.json").is_file():
        _check_base_of_adapter(folder, config)
    return of_adapter(folder, config)


def _check_base_of_run(run: RunFolder, config: Config) -> None:
    """Refuses a base whose files are not those that a run was started with. Where one of them is on the hub and the
    other in a folder, the weights are compared once they are loaded.

    Raises:
        InvalidInput
    """
    own, given = run.manifest["base_identity"], base_identity(config)
    if own == given or ("hub" in own) != ("hub" in given):
        return
    trained_on = run.read_config()["model"]["path"]
    what = f"{run.path} was trained on {trained_on}, and the files of {config.model.path} are others"
    hint = f"loraga eval {run.path} model.path={config.model.path} compares the weights"
    raise InvalidInput([Fault("--adapters", what, hint)])


def _check_base_of_adapter(folder: Path, config: Config) -> None:
    """Refuses an adapter whose own base is known, and is another.

    Raises:
        InvalidInput
    """
    own, base = str(described(folder).get("base_model_name_or_path") or ""), config.model.path
    if not own or own == base:
        return
    places = [resolve_path(name) for name in (own, base)]
    if places[0].is_dir() and places[1].is_dir():
        model = config.model.model_copy(update={"path": own, "revision": None})
        same = base_identity(config.model_copy(update={"model": model})) == base_identity(config)
    elif any(place.is_dir() for place in places) or not HUB_NAME.fullmatch(own):
        warn(f"{folder} says that its base is {own}; whether {base} has the same weights is not known")
        return
    else:
        same = False
    if not same:
        what = f"{folder} is an adapter of {own}, and {base} is another base"
        raise InvalidInput([Fault("--adapters", what, f"loraga eval {own} --adapters {folder}")])
