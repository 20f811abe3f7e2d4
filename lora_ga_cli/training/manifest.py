"""Reads the manifest of a run, and checks that its entries are of the types that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_ga_cli.config.wording import what_is_wrong
from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.json_files import read_json

FORMAT = 2
"""The format of run folders. Those of format 1 had another form of adapters and other names of options."""


class _Stored(BaseModel):
    """Entries of other names are not looked at, and those with a default need not be there."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _File(_Stored):
    size: int = 0
    sha256: str = ""
    lines: int = 0


class _Rows(_Stored):
    rows: int = 0
    sha256: str = ""


class _Place(_Stored):
    path: str
    from_run: str


class _Manifest(_Stored):
    """The entries that are read back."""

    settings: dict[str, Any] = {}
    files: dict[str, _File] | None = None
    result_files: dict[str, _File] = {}
    metrics: _File = _File()
    data: dict[str, _Rows] = {}
    total_steps: int = 0
    label_names: list[str] | None = None
    base_identity: dict[str, Any] = {}
    base: str = ""
    started: str = ""
    finished: str = ""
    failed: str | None = None
    working_folder: _Place | None = None
    provenance: dict[str, Any] = {}
    learning_rate: float = 0.0
    gradient: str | None = None
    steps: int = 0
    training_seconds: float = 0.0
    training_loss: float | None = None
    training_loss_steps: int | None = None
    validation_loss: float | None = None
    adapter_rank: int | None = None
    trained_parameters: int = 0
    optimizer_state_bytes: int | None = None
    peak_memory_bytes: int | None = None
    forecast_peak_memory_bytes: int | None = None
    seconds_per_step: float | None = None
    ends: dict[str, Any] | None = None


def read_manifest(file: Path, mend: str = "") -> dict[str, Any]:
    """The content of a manifest.

    Args:
        mend: what makes the file anew, for the message.

    Raises:
        FileNotFoundError
        DamagedFile: it is not what was written, or an entry is of another type than loraga writes.
    """
    found = read_json(file, mend)
    if not isinstance(found, dict):
        raise DamagedFile(file, "is damaged (no object of JSON)", mend)
    if found.get("format") == FORMAT:  # those of earlier versions are refused by their format
        try:
            _Manifest.model_validate(found)
        except ValidationError as error:
            raise DamagedFile(file, f"is damaged ({type_problem(error)})", mend) from error
    return found


def type_problem(error: ValidationError) -> str:
    """The first entry that is of another type, in a few words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where or 'the content'} {what_is_wrong(first)}"
