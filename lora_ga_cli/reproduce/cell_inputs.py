"""Hashes of the files that a cell reads, so that a table never shows values of other data or of another base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_ga_cli.config.schema import Config
from lora_ga_cli.data.local import listed
from lora_ga_cli.data.remote import is_remote
from lora_ga_cli.evaluation.tasks.base import task_of
from lora_ga_cli.files import sha256_file
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.paths import cache_root, resolve_path


def digests(config: Any) -> dict[str, str]:
    """SHA-256 of the local files and the local base model of a configuration, by option. Missing files have none, and
    neither have the options of a measure without a model."""
    if not isinstance(config, Config):
        return {}
    hashes = {name: _hash_file(path, path.stat().st_mtime_ns) for name, path in _files(config) if path.is_file()}
    base = resolve_path(config.model.path)
    if (base / "config.json").exists():
        hashes["model.path"] = _hash_base(base, cache_root(config.cache_dir) / "digests.json")
    return hashes


def changed(config: Any, before: Mapping[str, str]) -> list[str]:
    """Options whose file or base model exists and differs from before."""
    return [name for name, digest in digests(config).items() if before.get(name, digest) != digest]


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    given = {
        **config.dataset.files,
        **task_of(config).files(),
    }
    for name, paths in given.items():
        for number, path in enumerate(listed(paths or [])):
            if not is_remote(path):  # its content is part of the key of its rows
                yield f"{name}[{number}]" if number else name, resolve_path(path)


@lru_cache(maxsize=256)
def _hash_file(path: Path, modified: int) -> str:
    return sha256_file(path)


@lru_cache(maxsize=64)
def _hash_base(folder: Path, memo: Path) -> str:
    from lora_ga_cli.model.identity import local_identity

    return sha256_json(local_identity(folder, memo))
