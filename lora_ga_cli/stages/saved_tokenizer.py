"""The tokenizer beside a result that was trained with another one than its base has, or with another chat template."""

from __future__ import annotations

from pathlib import Path

from lora_ga_cli.config.schema import Config
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.training.run_folder import RunFolder

FILE = "tokenizer_config.json"


def save_tokenizer(inputs: Inputs, run: RunFolder) -> None:
    """Writes the tokenizer, with its chat template, into the folder of a run."""
    inputs.tokenizer.save_pretrained(run.path)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / FILE).is_file()


def with_saved_tokenizer(config: Config, folder: Path) -> Config:
    """A configuration that takes the tokenizer and the chat template from beside what was trained, where they are.

    So neither the file nor the folder that the run was given has to be there any more.
    """
    if not has_tokenizer(folder):
        return config
    model = config.model.model_copy(update={"tokenizer": str(folder.resolve())})
    dataset = config.dataset.model_copy(update={"chat_template": None})
    return config.model_copy(update={"model": model, "dataset": dataset})
