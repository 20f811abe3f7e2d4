"""The identity of a base model by content: the part of a gradient's key that stands for the weights."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from lora_ga_cli.errors import ModelError
from lora_ga_cli.json_files import read_json, sha256_json
from lora_ga_cli.remembered_digests import remembered_sha256

WEIGHT_FILES = ("*.safetensors", "*.bin")


def local_identity(folder: Path, memo: Path) -> dict[str, str]:
    """The identity of a model in a local folder: hashes of its weights and of its configuration.

    Hashing 13 GB takes long, so a file's hash is cached in ``memo`` (JSON) by path, size and time of change.

    Returns:
        ``{"weights_sha256": …, "config_sha256": …}``.

    Raises:
        ModelError: the folder has no weights.
    """
    files = sorted(file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    if not files:
        raise ModelError(f"{folder}: no weights there (looked for {', '.join(WEIGHT_FILES)})")
    digests = {file.name: remembered_sha256(file, memo) for file in files}
    try:
        config = read_json(folder / "config.json")
    except ValueError as error:
        raise ModelError(f"{folder / 'config.json'} is damaged: {error}") from error
    return {"weights_sha256": sha256_json(digests), "config_sha256": sha256_json(config)}


def stored_names(folder: Path) -> set[str] | None:
    """Names of the tensors in a local folder; None if its files are damaged or are not safetensors."""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as opened:
                names.update(opened.keys())
        except SafetensorError:
            return None
    return names or None


def hub_identity(name: str, commit: str | None) -> dict[str, str]:
    """The identity of a model on the hub: its name and commit, which determine every byte.

    Raises:
        ModelError: the commit is not known, so different weights could not be told apart.
    """
    if not commit:
        raise ModelError(f"{name}: its commit on the hub is not known; give model.revision=COMMIT, or a local folder")
    return {"hub": name, "commit": commit}
