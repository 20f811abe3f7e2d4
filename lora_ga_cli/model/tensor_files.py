"""Reading safetensors files, where a damaged one is an error of one line that names it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lora_ga_cli.errors import DamagedFile


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU.

    Raises:
        DamagedFile: it is missing, or no complete safetensors file.
    """
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise DamagedFile(file, "is missing") from error
    except SafetensorError as error:
        raise DamagedFile(file, f"is damaged (no complete safetensors file: {error})") from error


def check_readable(file: Path) -> None:
    """Checks that a file is a complete safetensors file; its tensors are not read.

    Raises:
        DamagedFile
    """
    try:
        with safe_open(file, framework="pt"):
            pass
    except FileNotFoundError as error:
        raise DamagedFile(file, "is missing") from error
    except SafetensorError as error:
        raise DamagedFile(file, f"is damaged (no complete safetensors file: {error})") from error
