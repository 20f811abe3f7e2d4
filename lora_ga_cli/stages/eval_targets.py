"""What `loraga eval` can score: a finished run, an adapter in a folder, or any model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from lora_ga_cli.config.compose import compose_around, fits_run
from lora_ga_cli.config.overrides import COMMAND_LINE
from lora_ga_cli.config.schema import Config
from lora_ga_cli.disk import folder_problem
from lora_ga_cli.errors import Fault, InvalidInput, RunError, suggest, system_fault
from lora_ga_cli.evaluation.tasks.base import task_of
from lora_ga_cli.files import sha256_file
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.lora.description import described
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.methods.loading import ADAPTER_FILES, is_custom_adapter, load_adapter
from lora_ga_cli.paths import ASSETS, BUNDLED, PACKAGE, resolve_path
from lora_ga_cli.report.console import step
from lora_ga_cli.stages.inputs import Inputs, base_identity
from lora_ga_cli.stages.saved_tokenizer import with_saved_tokenizer
from lora_ga_cli.stages.trained import config_of, load_trained, require_finished
from lora_ga_cli.training.run_folder import RunFolder, with_stored_rows
from lora_ga_cli.training.run_names import names_told_apart

ROWS_BY = "dataset=… or recipe=…, or a benchmark by eval=…"
"""What gives an adapter or a model something to be scored on."""
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class EvalTarget:
    """A model to score.

    Args:
        name: the name of its folder, or on the hub, by which a server is asked for it.
        folder: where results are stored.
        state: changes if the model in the same place changes.
        load: returns the model in evaluation mode.
        run: the run that trained it; None for an adapter or a model.
        adapter: the folder of its adapter; None for a complete model.
        is_base: it is a model as it is, on which there may be adapters.
        told_apart: its name beside others; empty for ``name``.
    """

    name: str
    config: Config
    folder: Path
    state: str
    load: Callable[[Inputs], PreTrainedModel | PeftModel]
    run: RunFolder | None = None
    adapter: Path | None = None
    is_base: bool = False
    told_apart: str = ""

    @property
    def label(self) -> str:
        """What lines, tables and pictures call it."""
        return self.told_apart or self.name

    @property
    def label_names(self) -> list[str] | None:
        """The names of the classes that a run was trained for, in order; None if it is no run, or has none."""
        return None if self.run is None else self.run.manifest.get("label_names")


def told_apart(targets: Sequence[EvalTarget]) -> list[EvalTarget]:
    """The targets with labels in which those of one name have the folders around them that tell them apart."""
    places = [_place(target) for target in targets]
    labels = iter(names_told_apart([place for place in places if place is not None]))
    return [
        target if place is None else replace(target, told_apart=next(labels))
        for target, place in zip(targets, places, strict=True)
    ]


def _place(target: EvalTarget) -> Path | None:
    """The folder that has the target's name; None for a model that is named in another way."""
    if target.run is not None:
        return target.run.path
    folder = target.adapter or Path(target.config.model.path)
    return folder if folder.is_dir() and folder.resolve().name == target.name else None


def target_of_run(run: RunFolder, config: Config) -> EvalTarget:
    """The target of a run.

    Raises:
        RunError: it has not finished.
    """
    require_finished(run)
    return EvalTarget(
        run.path.resolve().name,
        with_saved_tokenizer(with_stored_rows(config, run), run.path),
        run.path if folder_problem(run.path) is None else _beside(run, config),
        run.manifest["finished"],
        lambda inputs: load_trained(inputs, run),
        run,
        run.path.resolve() if method_of(config).output.is_adapter else None,
    )


def _beside(run: RunFolder, config: Config) -> Path:
    """Where results are stored of a run of another user, or of one on a disk without room.

    Raises:
        InvalidInput: nothing can be written there either.
    """
    stored = resolve_path(config.output_dir)
    inside = run.path.resolve().is_relative_to(stored.resolve())
    folder = (resolve_path("runs") if inside else stored) / f"eval-{run.path.resolve().name}"
    if problem := folder_problem(folder):
        raise InvalidInput([system_fault("output_dir", folder, problem)])
    step("eval", f"nothing can be written in {run.path}: results go to {folder}")
    return folder


class NothingToScore(RunError):
    """A file or folder that is there, and no run, adapter or model: a pattern such as ``runs/*`` names such too."""


class NoRowsToScore(InvalidInput):
    """An adapter or a model without rows to score it on. Those that a pattern such as ``runs/*`` names among runs need
    none of the options of the others."""


def options_for_each(words: Sequence[str], options: Sequence[str]) -> dict[str, list[str]]:
    """The options for each of the words. Where there are runs and others, a run keeps its own rows and settings, and
    the options that choose them are for the others, which a line says."""
    runs = [text for text in words if is_run(text)]
    others = [text for text in words if text not in runs and _may_be_model(text)]
    chosen = [option for option in options if not option.startswith("-") and not fits_run(option)]
    if not (runs and others and chosen):
        return {text: list(options) for text in words}
    step("eval", f"{', '.join(chosen)}: for {', '.join(others)}; each run keeps its own rows and settings")
    kept = [option for option in options if option not in chosen]
    return {text: list(options) if text in others else kept for text in words}


def is_run(text: str) -> bool:
    """Whether a word names the folder of a run."""
    return (Path(text).expanduser() / "manifest.json").is_file()


def _may_be_model(text: str) -> bool:
    folder = resolve_path(text)
    is_hub_name = HUB_NAME.fullmatch(text) is not None and not Path(folder.parts[0]).exists()
    files = ("adapter_config.json", "config.json")
    return is_hub_name or is_custom_adapter(folder) or any((folder / name).is_file() for name in files)


def bundled_model(text: str) -> bool:
    """Whether a word names a model that comes with loraga or with another Python package.

    Raises:
        InvalidInput: it is written so, and there is no such model.
    """
    if not text.startswith((BUNDLED, PACKAGE)):
        return False
    if (resolve_path(text) / "config.json").is_file():
        return True
    known = [f"{BUNDLED}{file.parent.name}" for file in ASSETS.glob("*/config.json")]
    raise InvalidInput([Fault(COMMAND_LINE, f"{text}: no such model", suggest(text, known))])


def find_target(text: str, options: Sequence[str], *, to_score: bool = True) -> EvalTarget:
    """The target that a word on the command line names.

    Args:
        options: changes to a run's ``eval`` options; for others, overrides of a complete configuration.
        to_score: False where the model is used in another way, which needs no rows.

    Raises:
        NothingToScore: the word names something else.
        RunError: it names nothing, or a run that has not finished.
        InvalidInput: wrong options.
    """
    folder = Path(text).expanduser()
    RunFolder(folder).require_manifest()  # the adapter in it would else be scored as one of another program
    if (folder / "manifest.json").is_file():
        run = RunFolder(folder)
        return target_of_run(run, config_of(run, options))
    if (folder / "adapter_config.json").is_file():
        base = described(folder).get("base_model_name_or_path")
        return of_adapter(folder, composed(options, base, to_score=to_score))
    if is_custom_adapter(folder):
        return of_adapter(folder, composed(options, None, to_score=to_score))
    if (folder / "config.json").is_file():
        return of_model(folder.resolve().name, composed(options, str(folder.resolve()), to_score=to_score))
    if HUB_NAME.fullmatch(text) and not Path(folder.parts[0]).exists():
        return of_model(text.replace("/", "--"), composed(options, text, to_score=to_score))
    if bundled_model(text):
        return of_model(resolve_path(text).name, composed(options, text, to_score=to_score))
    if not folder.exists():
        raise RunError(f"{text}: no such run folder, adapter or model")
    if folder.is_dir():
        what = "no run folder, adapter or model (neither manifest.json, adapter_config.json nor config.json is there)"
    else:
        what = "a file, not a run folder"
    raise NothingToScore(f"{text}: {what}")


def find_among(text: str, options: Sequence[str]) -> EvalTarget:
    """`find_target` for one of several words: for an adapter or a model without rows, the error is its own, and does
    not concern the others.

    Raises:
        RunError, InvalidInput
    """
    try:
        return find_target(text, options)
    except NoRowsToScore as error:
        folder = Path(text).expanduser()
        is_adapter = (folder / "adapter_config.json").is_file() or is_custom_adapter(folder)
        raise RunError(f"{text}: {'an adapter' if is_adapter else 'a model'}, which needs {ROWS_BY}") from error


def of_adapter(folder: Path, config: Config) -> EvalTarget:
    """The target of an adapter in a folder, on the base of a configuration."""

    def load(inputs: Inputs) -> PreTrainedModel | PeftModel:
        return load_adapter(inputs.load_model(), folder, str(inputs.device))

    if config.model.tokenizer is None:
        config = with_saved_tokenizer(config, folder)
    files = sorted(file for pattern in ADAPTER_FILES for file in folder.glob(pattern))
    name, state = folder.resolve().name, _state(config, {file.name: sha256_file(file) for file in files})
    return EvalTarget(name, config, _results(config, name), state, load, adapter=folder.resolve())


def of_model(name: str, config: Config) -> EvalTarget:
    """The target of the model of a configuration, as it is."""
    folder, state = _results(config, name), _state(config, {})
    return EvalTarget(name, config, folder, state, lambda inputs: inputs.load_model(), is_base=True)


def _state(config: Config, adapter: Mapping[str, str]) -> str:
    """A hash of the contents: the place may hold another model later, or it may be loaded in another precision."""
    base = base_identity(config)
    return sha256_json({"model": config.model.model_dump(mode="json"), "base": base, "adapter": dict(adapter)})


def _results(config: Config, name: str) -> Path:
    """A folder beside the runs, as nothing is written into a folder that is not a run."""
    return resolve_path(config.output_dir) / f"eval-{name}"


def composed(options: Sequence[str], base: str | None, *, to_score: bool = True) -> Config:
    """The configuration of a model or an adapter that is no run, from options on the command line.

    Raises:
        InvalidInput
    """
    config, has_data = compose_around(options, base)
    if to_score and task_of(config).needs_rows and not has_data:
        raise NoRowsToScore([Fault(COMMAND_LINE, "no data set to score on", ROWS_BY)])
    return config
