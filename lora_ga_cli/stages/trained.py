"""Loads the result of a run as any program would: the original base model, and the saved adapter on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from lora_ga_cli.config.began import located
from lora_ga_cli.config.compose import reconfigured
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.methods.loading import load_adapter
from lora_ga_cli.model.loading import load_model
from lora_ga_cli.model.targets import fingerprint
from lora_ga_cli.paths import BUNDLED, PACKAGE, resolve_path
from lora_ga_cli.stages.inputs import Inputs, base_identity
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder, require_format


def identity_of_run(run: RunFolder) -> str:
    """A hash that tells a finished run from all others, and from a later one in the same folder."""
    manifest = run.manifest
    told = ("settings", "data", "base_identity", "label_names", "started", "finished")
    return sha256_json({name: manifest.get(name) for name in told})


def stored_config(run: RunFolder, options: Sequence[str] = ()) -> Config:
    """The configuration of a finished run, with what it reads found from where it began.

    Args:
        options: see `reconfigured`.

    Raises:
        RunError: the run has not finished.
        InvalidInput: wrong options.
    """
    require_finished(run)  # before its configuration is read, which an earlier version wrote with other options
    check_result(run, weights=False)
    return reconfigured(located(run.read_config(), run.began_in), options)


def config_of(run: RunFolder, options: Sequence[str], base: str | None = None) -> Config:
    """The configuration of a finished run whose base model is there.

    Args:
        options: see `reconfigured`.
        base: another place of the same base model.

    Raises:
        RunError: the run has not finished, or its base model is not where it was.
        InvalidInput: wrong options.
    """
    config = stored_config(run, options)
    if base is not None:
        config = _with_model(config, path=base, revision=None)
    if not method_of(config).output.is_adapter:
        return of_complete_model(config, run)
    if "hub" not in run.manifest["base_identity"] and not resolve_path(config.model.path).is_dir():
        raise RunError(
            f"{run.path} was trained on {config.model.path}, and there is no such folder now: give the place of this "
            f"base (loraga eval {run.path} model.path=FOLDER, loraga merge {run.path} --base FOLDER)"
        )
    return config


def of_complete_model(config: Config, run: RunFolder) -> Config:
    """The configuration of a run whose folder is the complete model, which has its own tokenizer and the rows of new
    tokens."""
    return _with_model(config, path=str(run.path.resolve()), revision=None, tokenizer=None, new_tokens=[])


def _with_model(config: Config, **changes: Any) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


def load_trained(inputs: Inputs, run: RunFolder) -> PreTrainedModel | PeftModel:
    """The trained model of a run, in evaluation mode.

    Raises:
        RunError: the base is not the one that the adapter was trained on.
        DamagedFile: a file of the result is not what was written.
        ModelError
    """
    if not method_of(inputs.config).output.is_adapter:  # whose weights are checked when they are loaded
        config = inputs.config.model.model_copy(update={"path": str(run.path.resolve()), "revision": None})
        return load_model(config, inputs.device, inputs.num_labels)
    base = inputs.load_model()
    check_base(base, inputs.config, run)
    check_result(run)
    return load_adapter(base, run.path, str(inputs.device))


def check_base(base: PreTrainedModel, config: Config, run: RunFolder) -> None:
    """Refuses a base whose adapted weights are not exactly those that the run was started with.

    If the run quantized its base, and this is the base before quantization, the model files are compared instead.

    Raises:
        RunError
    """
    expected = dict(run.manifest["base_identity"])
    if expected.pop("quantization", None) is not None and config.model.quantization is None:
        same = base_identity(config) == expected
    else:
        same = fingerprint(method_of(config).targets(base)) == run.manifest.get("base_fingerprint")
    if not same:
        raise RunError(
            f"{config.model.path} is not the base that {run.path} was trained on: its weights differ. "
            "Give the base that it was trained on (loraga eval: model.path=FOLDER, loraga merge: --base FOLDER)"
        )


def require_finished(run: RunFolder) -> None:
    """Checks that a run can be scored and merged.

    Raises:
        RunError: it has not finished, or an earlier version made it.
        DamagedFile: its manifest is damaged or missing.
    """
    run.require_manifest()
    if not run.manifest_file.exists():
        raise RunError(f"{run.path}: not a run folder (no {run.manifest_file.name} there)")
    require_format(run)
    if not run.finished:
        raise RunError(f"{run.path}: this run has not finished; run its train command again to resume it")


def folder_of(text: str) -> RunFolder:
    """The run folder that a word on the command line names.

    Raises:
        RunError: there is no such folder.
    """
    path = Path(text).expanduser()
    if text.startswith((BUNDLED, PACKAGE)):
        raise RunError(f"{text}: a model, not a run folder")
    if not path.is_dir():
        raise RunError(f"{text}: {'a file, not a run folder' if path.exists() else 'no such run folder'}")
    return RunFolder(path)
