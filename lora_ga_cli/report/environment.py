"""What a bug report has to say of the machine, without anything that is secret."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ga_cli.paths import cache_root
from lora_ga_cli.report.provenance import PACKAGES, version

MORE_PACKAGES = ("bitsandbytes", "liger-kernel", "flash-attn", "tokenizers", "huggingface_hub", "numpy", "typer")
VARIABLES = (
    "ACCELERATE_",
    "CUDA_",
    "HF_",
    "HSA_",
    "LORAGA_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PYTORCH_",
    "TOKENIZERS_",
    "TORCH",
    "TRANSFORMERS_",
    "WORLD_SIZE",
    "XDG_CACHE_HOME",
)
"""Beginnings of the names of environment variables that change what loraga does."""
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
"""What the names of variables with secrets contain. Of them only the name is told."""
IN_ADDRESS = re.compile(r"(\w+://)[^/@\s]+@")


def environment() -> dict[str, Any]:
    """Versions, machine, GPUs, cache and environment variables, as plain data. Paths below the home folder begin with
    ``~``."""
    import torch

    return {
        "loraga": version("loraga"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in (*PACKAGES, *MORE_PACKAGES)},
        "platform": platform.platform(),
        "executable": _short(sys.executable),
        "cpu": {"name": _cpu(), "cores": os.cpu_count(), "memory": _memory(), "threads": torch.get_num_threads()},
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "gpus": [
            {"name": item.name, "memory": item.total_memory, "capability": f"{item.major}.{item.minor}"}
            for item in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ],
        "cache": _short(str(cache_root(None))),
        "variables": variables(os.environ),
    }


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that change what loraga does; of those with a secret, only that they are set."""
    return {
        name: "(set, not shown)" if SECRET.search(name) else IN_ADDRESS.sub(r"\1", _short(value))
        for name, value in sorted(environ.items())
        if name.startswith(VARIABLES)
    }


def _short(path: str) -> str:
    home = str(Path.home())
    return "~" + path.removeprefix(home) if path.startswith(home + os.sep) else path


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def _memory() -> int:
    """Of the machine, in bytes."""
    import psutil

    return int(psutil.virtual_memory().total)


def _driver() -> str | None:
    """The version of the GPU's driver; None where there is no NVIDIA GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
