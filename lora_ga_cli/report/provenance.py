"""The provenance of a result: software versions, machine, command and time."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "hydra-core")


def provenance() -> dict[str, Any]:
    """Versions, machine, command, time, and the git state of the working folder."""
    return {
        "loraga": version("loraga"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "accelerator": _accelerator(),
        "command": sys.orig_argv,
        "time": now(),
        "git": _git(),
    }


def now() -> str:
    """The present time in UTC as ISO 8601, without fractions of a second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def version(package: str) -> str:
    """The installed version of a package, or "absent". For loraga itself, the version of this source."""
    if package == "loraga":
        from lora_ga_cli import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _git() -> dict[str, Any] | None:
    """Commit of the working folder and whether it has uncommitted changes; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
