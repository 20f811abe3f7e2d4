"""Measures of tables: a user adds one in one file, and a wrong value is named."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.registry import CODE_VARIABLE, MEASURES
from tests.config import TABLE, lay_out
from tests.helpers import Loraga, configured

MEASURE = """
from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost, Measure

@MEASURES.register("seed_of_cell")
class SeedOfCell(Measure):
    trains = False

    def __init__(self):
        self.cells = 0

    def compute(self, config):
        self.cells += 1
        return {"seed": config.seed, "cells": self.cells}

    def forecast(self, inputs, pace):
        return Cost(2 * 1024**3, 60)

    def shared_work(self, config):
        return str(config.seed)
"""
SEEDS = TABLE.replace("measure: loss, value: validation_loss", "measure: seed_of_cell, value: seed")


@pytest.fixture
def measure_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"my_measure.py": MEASURE, "user/tables/seeds.yaml": SEEDS})
    monkeypatch.setenv(CODE_VARIABLE, str(tmp_path / "my_measure.py"))
    monkeypatch.setattr(MEASURES, "_classes", dict(MEASURES._classes))


def test_the_shipped_measures_are_registered() -> None:
    assert {"score", "loss", "coverage", "similarity"} <= set(MEASURES.names())


@pytest.mark.usefixtures("measure_file")
def test_a_measure_in_one_file_fills_a_column(loraga: Loraga) -> None:
    """The rows of one seed share work, so one instance measures them one after another."""
    loraga("reproduce", "seeds", "--config-dir", "user")
    lines = list(csv.DictReader(Path("reproduced/seeds/table.csv").read_text().splitlines()))
    assert [(line["row"], float(line["mean"])) for line in lines] == [("LoRA", 1.5), ("LoRA-GA", 1.5)]
    lay_out(Path("user"), {"tables/counts.yaml": SEEDS.replace("value: seed", "value: cells")})
    loraga("reproduce", "counts", "--config-dir", "user")
    lines = list(csv.DictReader(Path("reproduced/counts/table.csv").read_text().splitlines()))
    assert [float(line["mean"]) for line in lines] == [1, 2]


@pytest.mark.usefixtures("measure_file")
def test_a_dry_run_shows_the_forecast_of_a_users_measure(loraga: Loraga) -> None:
    out = loraga("reproduce", "seeds", "--config-dir", "user", "--dry-run")
    assert "2.00 GiB" in out
    assert "2 trainings and measurements are left: 2:00" in out


@pytest.mark.usefixtures("measure_file")
def test_a_value_that_a_measure_does_not_give_is_named_with_the_nearest_one(loraga: Loraga) -> None:
    lay_out(Path("user"), {"tables/seeds.yaml": SEEDS.replace("value: seed", "value: sed")})
    out = loraga("reproduce", "seeds", "--config-dir", "user")
    assert "column loss: the measure seed_of_cell gave no value 'sed' (did you mean seed?)" in out


def test_an_unknown_measure_is_refused_before_anything_runs(loraga: Loraga) -> None:
    lay_out(Path("user"), {"tables/seeds.yaml": TABLE.replace("measure: loss", "measure: similarty")})
    out = loraga("reproduce", "seeds", "--config-dir", "user", code=2)
    assert "full.columns.loss.measure" in out
    assert "no measure 'similarty'; did you mean similarity?" in out


@pytest.mark.parametrize(("method", "directions"), [("lora", 2), ("lora_ga", 4)])
def test_coverage_counts_the_directions_that_the_method_begins_with(
    method: str, directions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of rank 2 follows two directions of the gradient, and LoRA-GA's first step follows four."""
    singular = torch.tensor([4.0, 3.0, 2.0, 1.0, 1.0])
    factors = Factors(torch.eye(8)[:, :5], singular, torch.eye(5), norm=float(singular.norm()))
    monkeypatch.setattr("lora_ga_cli.stages.inputs.prepare_inputs", lambda config: None)
    monkeypatch.setattr("lora_ga_cli.stages.estimate.estimate", lambda inputs: GradientArtifact({"a": factors}, 2))
    expected = float((singular[:directions] ** 2).sum() / (singular**2).sum())
    found = MEASURES["coverage"]().compute(configured(method, "rank=2"))
    assert found == {"mean": pytest.approx(expected), "minimum": pytest.approx(expected)}
