"""Which files of a folder are the result of a run: the adapter or the model, and the tokenizer that goes with it."""

from __future__ import annotations

from pathlib import Path

from lora_ga_cli.methods.loading import ADAPTER_FILES

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")


def result_files(folder: Path) -> list[str]:
    """The names of the files that a run's result consists of."""
    patterns = (*ADAPTER_FILES, *MODEL_FILES, *TOKENIZER_FILES)
    return sorted({file.name for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
