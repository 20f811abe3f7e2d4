"""Loading the result of a run the way anyone would: the original base model, and the saved adapter on it."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.methods.loading import load_adapter
from lora_ga_cli.model.loading import load_model
from lora_ga_cli.model.targets import find_targets, fingerprint
from lora_ga_cli.stages.inputs import Inputs, base_identity
from lora_ga_cli.training.run_folder import RunFolder, require_format


def load_trained(inputs: Inputs, run: RunFolder) -> PreTrainedModel | PeftModel:
    """The trained model of a run, in evaluation mode.

    Raises:
        RunError: the base is not the one that the adapter was trained on.
        ModelError
    """
    if not method_of(inputs.config).output.is_adapter:
        config = inputs.config.model.model_copy(update={"path": str(run.path.resolve()), "revision": None})
        return load_model(config, inputs.device, inputs.num_labels)
    base = inputs.load_model()
    check_base(base, inputs, run)
    return load_adapter(base, run.path, str(inputs.device))


def check_base(base: PreTrainedModel, inputs: Inputs, run: RunFolder) -> None:
    """Refuses a base whose adapted weights are not, to the bit, those that the run began with.

    Where the run quantized its base and this is the base before that, the files it was loaded from are compared.

    Raises:
        RunError
    """
    config = inputs.config
    began_on = dict(run.manifest["base_identity"])
    if began_on.pop("quantization", None) is not None and config.model.quantization is None:
        same = base_identity(config) == began_on
    else:
        same = fingerprint(find_targets(base, config.target_modules)) == run.manifest.get("base_fingerprint")
    if not same:
        raise RunError(
            f"{config.model.path} is not the base that {run.path} was trained on: its weights differ. "
            "Give the right one (--base with merge)"
        )


def require_finished(run: RunFolder) -> None:
    """
    Raises:
        RunError: training has not come to its end.
    """
    if not run.manifest_file.exists():
        raise RunError(f"{run.path}: not a run folder (no {run.manifest_file.name} there)")
    require_format(run)
    if not run.finished:
        raise RunError(f"{run.path}: this run has not finished; run its train command again to resume it")


def folder_of(text: str) -> RunFolder:
    """
    Raises:
        RunError: there is no such folder.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        raise RunError(f"{text}: {'a file, not a run folder' if path.exists() else 'no such run folder'}")
    return RunFolder(path)
