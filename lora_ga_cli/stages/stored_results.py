"""Results of evaluations that are stored, and the lines beside them: both are checked before they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lora_ga_cli.digests import damage
from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.evaluation.completions import LINES_DIGEST
from lora_ga_cli.json_files import read_json
from lora_ga_cli.training.manifest import type_problem

SCORE_AGAIN = "loraga eval with the same options makes it again"


class _Result(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    identity: str = ""
    values: dict[str, float | None]
    lower_is_better: list[str] = []
    unranked: list[str] = []
    shares: list[str] = []
    rows: int = 0
    split: str = ""
    options: dict[str, Any] = {}
    time: str = ""
    lines_sha256: str | None = None


def read_result(file: Path) -> dict[str, Any] | None:
    """The content of a result's file; None if it is an object without values.

    Raises:
        FileNotFoundError
        DamagedFile
    """
    found = read_json(file, SCORE_AGAIN)
    if isinstance(found, dict) and "values" not in found:
        return None
    try:
        _Result.model_validate(found)
    except ValidationError as error:
        raise DamagedFile(file, f"is damaged ({type_problem(error)})", SCORE_AGAIN) from error
    assert isinstance(found, dict)
    return found


def check_lines(lines: Path, result: Mapping[str, Any]) -> None:
    """Checks the lines beside a result; those of earlier versions have no digest.

    Raises:
        DamagedFile
    """
    expected = result.get(LINES_DIGEST)
    if expected is not None and (what := damage(lines, {"sha256": expected})):
        raise DamagedFile(lines, what, SCORE_AGAIN)


def read_lines(lines: Path, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines beside a result; none if there is no file.

    Raises:
        DamagedFile
    """
    check_lines(lines, result)
    # as bytes: texts may hold Unicode line breaks
    stored = lines.read_bytes().split(b"\n") if lines.is_file() else []
    try:
        found = [json.loads(line.decode("utf-8")) for line in stored if line]
    except (ValueError, RecursionError) as error:
        raise DamagedFile(lines, f"is damaged (a line is no complete JSON: {error})", SCORE_AGAIN) from error
    if not all(isinstance(line, dict) for line in found):
        raise DamagedFile(lines, "is damaged (a line is no object of JSON)", SCORE_AGAIN)
    return found
