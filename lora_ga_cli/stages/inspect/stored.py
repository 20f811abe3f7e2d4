"""The inspection that is kept in a run's folder, which is checked before it is used."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.files import sha256_file
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.export import WEIGHTS_FILE
from lora_ga_cli.report.console import warn
from lora_ga_cli.training.manifest import type_problem
from lora_ga_cli.training.run_folder import RunFolder

FORMAT = 1
INSPECTION_FILE = "inspection.json"


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Of(_Checked):
    adapter_sha256: str | None
    gradient: str | None


class _Shares(_Checked):
    left: float
    right: float
    both: float
    either: float


class _Intruders(_Checked):
    count: int
    of: int
    threshold: float


class _Layer(_Checked):
    shape: list[int]
    rank: int
    norm: float
    effective_rank: float
    stable_rank: float
    cut: dict[str, float]
    within_start: _Shares | None
    within_gradient: _Shares | None
    weight_norm: float | None
    relative_norm: float | None
    amplification: float | None
    intruders: _Intruders | None


class _Adapter(_Checked):
    layers: dict[str, _Layer]
    totals: dict[str, Any]


class _Gradient(_Checked):
    capacity: int
    directions_per_rank: int
    layers: dict[str, dict[str, Any]]


class _Stored(_Checked):
    """What is read of a kept inspection."""

    format: int
    of: _Of
    gradient: _Gradient | None
    adapter: _Adapter | None


def read_inspection(run: RunFolder) -> dict[str, Any] | None:
    """The kept inspection of a run; None if there is none of this format, if it is of another adapter or gradient, or,
    with a line for the user, if it is damaged."""
    file = run.path / INSPECTION_FILE
    try:
        found = read_json(file)
        stored = _Stored.model_validate(found)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warn(f"{file} {error.what}; it is made again")
        return None
    except ValidationError as error:
        if not isinstance(found, dict) or found.get("format") == FORMAT:
            warn(f"{file} is damaged ({type_problem(error)}); it is made again")
        return None
    of = _Of(adapter_sha256=adapter_digest(run), gradient=run.manifest.get("gradient"))
    return dict(found) if (stored.format, stored.of) == (FORMAT, of) else None


def adapter_digest(run: RunFolder) -> str | None:
    """The digest of the weights of a run's adapter; None if it has none of this form."""
    file = run.path / WEIGHTS_FILE
    return sha256_file(file) if file.is_file() else None
