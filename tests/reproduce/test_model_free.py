"""Measures without a model: their cells are options of their own, which are checked like all others."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lora_ga_cli.cli.reproduce import Scale, _all_tables
from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.registry import CODE_VARIABLE, MEASURES
from lora_ga_cli.reproduce.cells import cells_of, check_extra_overrides
from lora_ga_cli.reproduce.measures.base import Cost
from lora_ga_cli.reproduce.measures.model_free import CellOptions, ModelFreeMeasure
from lora_ga_cli.reproduce.table import Table
from tests.config import lay_out
from tests.helpers import Loraga

MEASURE = """
from pathlib import Path

from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost
from lora_ga_cli.reproduce.measures.model_free import CellOptions, ModelFreeMeasure

class PowerOptions(CellOptions):
    base: int = 2
    exponent: int = 3

@MEASURES.register("power")
class Power(ModelFreeMeasure):
    Options = PowerOptions

    def compute(self, config):
        is_known = config.base > 0
        return {"power": config.base**config.exponent + config.seed, "root": config.base if is_known else None}

    def forecast(self, inputs, pace):
        return Cost(2 * 1024**3, inputs.exponent)

    def draw(self, rows, folder, title):
        text = " ".join(f"{row}:{options.base}:{values['power']}" for row, (options, values) in rows.items())
        (folder / "rows.txt").write_text(text)
        return [folder / "rows.txt"]
"""
TABLE = """
title: Powers
rows: {two: [base=2], minus three: [base=-3]}
full:
  note: Of small numbers.
  overrides: [exponent=2]
  seeds: [0, 1]
  columns:
    power: {measure: power, value: power, format: number}
    root: {measure: power, value: root, format: number}
"""


class Settings(CellOptions):
    """Options of the measure below."""

    size: int = 1


class Sized(ModelFreeMeasure):
    """A measure that is not registered."""

    Options: ClassVar[type[CellOptions]] = Settings

    def compute(self, config: Any) -> dict[str, Any]:
        return {"size": config.size}

    def forecast(self, inputs: Any, pace: Any) -> Cost:
        return Cost(0, 0)


@pytest.fixture
def measure_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"my_measure.py": MEASURE, "user/tables/powers.yaml": TABLE})
    MEASURES.names()
    monkeypatch.setenv(CODE_VARIABLE, str(tmp_path / "my_measure.py"))
    monkeypatch.setattr(MEASURES, "_classes", dict(MEASURES._classes))


@pytest.mark.usefixtures("measure_file")
def test_a_table_without_a_model_is_made_kept_and_forecast(loraga: Loraga) -> None:
    flags = ["powers", "--config-dir", "user"]
    out = loraga("reproduce", *flags, "--dry-run")
    assert "2.00 GiB" in out
    assert "time on this device" in out
    out = loraga("reproduce", *flags)
    assert "column root" not in out  # a value of None is no fault
    lines = list(csv.DictReader(Path("reproduced/powers/table.csv").read_text().splitlines()))
    means = [(line["row"], line["column"], line["mean"]) for line in lines]
    assert means[:2] == [("two", "power", "4.5"), ("two", "root", "2")]
    assert means[2:] == [("minus three", "power", "9.5"), ("minus three", "root", "")]
    assert "Of small numbers." in Path("reproduced/powers/table.md").read_text()
    assert Path("reproduced/powers/rows.txt").read_text() == "two:2:4 minus three:-3:9"
    assert "4 of 4 trainings and measurements exist already" in loraga("reproduce", *flags)


@pytest.mark.usefixtures("measure_file")
def test_wrong_options_are_reported_once(loraga: Loraga) -> None:
    flags = ["reproduce", "powers", "--config-dir", "user"]
    out = loraga(*flags, "exponant=3", code=2)
    assert out.count("no option 'exponant' (did you mean exponent?)") == 1
    assert "exponent=x should be a whole number" in loraga(*flags, "exponent=x", code=2)
    assert "this table's rows differ in base" in loraga(*flags, "base=5", code=2)
    assert "one value for each option" in loraga(*flags, "exponent=1,2", code=2)
    lay_out(Path("user"), {"tables/powers.yaml": TABLE.replace("base=2", "bas=2")})
    assert "two, power: no option 'bas' (did you mean base?)" in loraga(*flags, code=2)


def test_each_kind_of_table_checks_its_own_options() -> None:
    check_extra_overrides(["size=3", "seed=1,2"], None, [Sized])
    with pytest.raises(InvalidInput, match="no option 'rank'"):
        check_extra_overrides(["rank=3"], None, [Sized])
    check_extra_overrides(["rank=3"], None, [MEASURES["coverage"]])
    check_extra_overrides(["rank=3"])


def test_tables_without_a_model_are_left_out_where_options_of_a_training_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "rac_lora" in _all_tables([], None, Scale.tiny, ["seed=3"], (), tune_lr=False)
    assert "rac_lora" not in _all_tables([], None, Scale.tiny, ["device=cpu"], (), tune_lr=False)
    assert "rac_lora trains no model, and is left out: device=cpu is for those that do" in capsys.readouterr().err


def test_a_cells_key_depends_on_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    MEASURES.names()
    monkeypatch.setattr(MEASURES, "_classes", {**MEASURES._classes, "sized": Sized})
    column = {"measure": "sized", "value": "size"}
    full = {"overrides": [], "seeds": [1, 2], "columns": {"a": column, "b": column}}
    table = Table.model_validate({"title": "", "rows": {"one": ["size=1"], "two": ["size=2"]}, "full": full})
    cells = cells_of(table, table.full, [], Path("runs"))
    assert len(cells) == 8
    assert len({cell.key for cell in cells}) == 4
    (cell, *_) = cells_of(table, table.full, ["seed=9"], Path("runs"))
    assert cell.config == Settings(size=1, seed=9)
