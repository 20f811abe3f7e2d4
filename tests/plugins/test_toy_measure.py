"""A measure in a user's file fills a column of a user's table."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ga_cli.registry import CODE_VARIABLE, MEASURES
from tests.helpers import Loraga

FILE = Path(__file__).with_name("toy_measure.py")
TABLE = Path(__file__).with_name("tables") / "toy.yaml"
COLUMN = "{measure: loss, value: validation_loss, format: number}"


@pytest.fixture(autouse=True)
def forget_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a test the measure is not registered any more."""
    MEASURES.names()
    monkeypatch.setattr(MEASURES, "_classes", dict(MEASURES._classes))
    monkeypatch.setenv(CODE_VARIABLE, "")
    yield
    sys.modules.pop(f"loraga_code_{FILE.stem}", None)


def test_it_fills_a_column(loraga: Loraga) -> None:
    lines = [line for line in FILE.read_text().splitlines() if line.startswith("seconds: ")]
    assert len(lines) == 1, "the file shows the line of a table that names the measure"
    text = TABLE.read_text().replace(f"validation loss: {COLUMN}", lines[0])
    folder = Path("user/tables")
    folder.mkdir(parents=True)
    (folder / "times.yaml").write_text(text)
    flags = ["--config-dir", "user", "--code", str(FILE), "--scale", "tiny", "--rows", "LoRA", "--columns", "seconds"]
    assert "1 trainings and measurements are left" in loraga("reproduce", "times", *flags, "--dry-run", "device=cpu")
    loraga("reproduce", "times", *flags, "device=cpu")
    (line,) = csv.DictReader(Path("reproduced/times-tiny/table.csv").read_text().splitlines())
    (manifest,) = Path("reproduced").rglob("manifest.json")
    assert float(line["mean"]) == json.loads(manifest.read_text())["training_seconds"]
