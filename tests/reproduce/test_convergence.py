"""`loraga reproduce rac_lora`: every row of the table keeps to the prediction that stands beside it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lora_ga_cli.reproduce.cells import cells_of
from lora_ga_cli.reproduce.table_files import find_table
from lora_ga_cli.reproduce.theory_cells import measured
from lora_ga_cli.reproduce.theory_options import ConvergenceOptions
from tests.helpers import Loraga

SHORT = {"links": 8, "draws": 8}


def values(**options: Any) -> dict[str, Any]:
    return measured(ConvergenceOptions(**{**SHORT, **options}), lambda link: None)


ROWS = {
    cell.row: cell.config for cell in cells_of(find_table("rac_lora"), find_table("rac_lora").full, [], Path("runs"))
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table_keeps_to_its_prediction(row: str) -> None:
    """Statistical errors apart: upper bounds hold, and no error is below the least that a subspace or rank allows."""
    options: ConvergenceOptions = ROWS[row].model_copy(update=SHORT)
    found = measured(options, lambda link: None)
    assert len(found["errors"]) == options.links + 1 or found["log_error"] == 6
    factor, bound = found["factor"], found["predicted_factor"]
    if bound is not None:
        assert factor <= bound + 4 * found["factor_error"] + 1e-12
    if bound is not None and options.problem == "distance":
        assert abs(factor - bound) <= 4 * found["factor_error"]
    if found["predicted_squares"] is not None:
        assert found["squares"] <= 1.3 * found["predicted_squares"]  # on the distance, it is the expectation
    if not options.restarts and found["predicted_errors"] is not None:
        assert min(found["errors"]) >= found["predicted_errors"][-1] - 1e-12
    if options.solver == "exact":
        assert found["errors"] == pytest.approx(found["predicted_errors"], abs=1e-14)


def test_one_pair_diverges_at_the_rate_at_which_one_factor_is_safe() -> None:
    both = values(trains="both_factors", solver="descent", restarts=False)
    one = values(solver="descent")
    assert both["log_error"] == 6
    assert both["factor"] is both["squares"] is None
    assert one["log_error"] < -0.5
    assert all(later <= earlier for earlier, later in zip(one["errors"], one["errors"][1:], strict=False))


def test_a_row_of_clients_is_the_central_row() -> None:
    central, federated = (values(problem="logistic", rank=2, clients=count) for count in (1, 4))
    assert federated["errors"] == pytest.approx(central["errors"], abs=1e-12)
    assert values(problem="logistic", rank=2, clients=4, solver="descent")["predicted_errors"] is None


def test_values_repeat_and_depend_on_the_seed() -> None:
    assert values(seed=1) == values(seed=1)
    assert values(seed=1)["errors"] != values(seed=2)["errors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trains": "both_factors"}, "needs descent or exact"),
        ({"solver": "exact"}, "needs trains=both_factors"),
        ({"solver": "exact", "trains": "both_factors", "problem": "network"}, "problem=distance or quadratic"),
        ({"solver": "exact", "trains": "both_factors", "restarts": False}, "would change nothing"),
        ({"side": "either", "restarts": False}, "side=either would change nothing"),
        ({"side": "left", "trains": "both_factors", "solver": "descent"}, "side=left would change nothing"),
        ({"clients": 4}, "problem=logistic"),
        ({"size": 4}, "size=4.0 would change nothing"),
        ({"steps": 3}, "steps=3 would change nothing"),
        ({"trains": "weight", "rank": 2}, "rank=2 would change nothing"),
        ({"trains": "weight", "solver": "descent"}, "solver=descent would change nothing"),
        ({"rate": 2}, "rate"),
    ],
)
def test_options_that_cannot_act_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ConvergenceOptions(**options)


EXACT = {"trains": "both_factors", "solver": "exact"}


@pytest.mark.parametrize(
    "options",
    [
        {**EXACT, "steps": 3, "sketch": "gaussian", "rate": 0.5, "size": 2.0, "side": "left"},
        {"trains": "weight", "rank": 2, "side": "left", "sketch": "kaiming", "restarts": False, "steps": 3},
    ],
)
def test_all_options_without_effect_are_shown_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        ConvergenceOptions(**options)
    for name in set(options) - set(EXACT):
        assert f"{name}={str(options[name]).lower()} would change nothing" in str(refused.value)


def test_every_row_can_be_selected() -> None:
    assert not [row for row in ROWS if "," in row]


@pytest.mark.figures
def test_the_command_makes_the_table_and_a_figure_of_each_problem(loraga: Loraga) -> None:
    rows = "distance: RAC-LoRA r=4,distance: LoRA r=4,quadratic: asymmetric LoRA r=4"
    out = loraga("reproduce", "rac_lora", "--scale", "tiny", "--rows", rows, "links=5")
    assert "Convergence of RAC-LoRA" in out
    folder = Path("reproduced/rac_lora-tiny")
    lines = {(line["row"], line["column"]): line["mean"] for line in csv.DictReader((folder / "table.csv").open())}
    assert float(lines["distance: RAC-LoRA r=4", "predicted factor"]) == 0.8
    assert float(lines["distance: LoRA r=4", "log10 error"]) == 6
    assert lines["distance: LoRA r=4", "factor"] == ""
    assert all((folder / f"errors_{name}.png").stat().st_size > 10_000 for name in ("distance", "quadratic"))
