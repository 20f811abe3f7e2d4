"""The cells of tables: every cell of every shipped table is a valid configuration, and equal cells have equal keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.reproduce.cells import Cell, cells_of, check_extra_overrides
from lora_ga_cli.reproduce.table import Part, Table, part_of
from lora_ga_cli.reproduce.table_files import all_tables, find_table, read_table
from tests.config import TABLE, lay_out

RUNS = Path("/somewhere/runs")


@pytest.fixture
def table(tmp_path: Path) -> Table:
    (tmp_path / "mine.yaml").write_text(TABLE)
    return read_table(tmp_path / "mine.yaml")


def with_all_columns(part: Part) -> Part:
    """A part as if all the files that its columns need existed."""
    columns = {name: column.model_copy(update={"needs": None}) for name, column in part.columns.items()}
    return part.model_copy(update={"columns": columns})


def full_cells(name: str, extra_overrides: Sequence[str] = ()) -> list[Cell]:
    table = find_table(name)
    return cells_of(table, table.full, extra_overrides, RUNS)


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize("name", sorted(all_tables()))
def test_every_cell_of_every_table_is_a_valid_configuration(name: str, scale: str) -> None:
    table = find_table(name)
    part = with_all_columns(part_of(table, name, scale))
    cells = cells_of(table, part, [], RUNS)
    assert len(cells) == (len(table.rows) - len(part.leave_out)) * len(part.columns) * len(part.seeds)
    assert {cell.config.seed for cell in cells} == set(part.seeds)
    for cell in cells:
        if cell.measure == "score" and cell.config.eval.task == "rows":
            names = {"accuracy", "exact_match", "matthews_correlation", "f1", "loss"}
            assert cell.value in names
    if part.tune_lr is not None:
        rates = {(cell.row, cell.column): 3e-5 for cell in cells}
        for trial in cells_of(table, part, [], RUNS, rates=rates, final_overrides=part.tune_lr.held_out):
            assert trial.config.dataset.validation_fraction > 0
            assert trial.config.dataset.validation_file is None
            assert trial.config.dataset.validation_split is None
            assert trial.config.trainer.learning_rate == 3e-5


def test_full_scale_trains_as_the_paper_does() -> None:
    for cell in full_cells("llama2", ["eval.execute_code=true"]):
        trainer, config = cell.config.trainer, cell.config
        assert (trainer.learning_rate, trainer.batch_size, trainer.epochs) == (2e-5, 32, 1)
        assert (config.alpha, config.target_modules) == (16, "all-linear")
        assert config.rank == {"LoRA-GA r=32": 32, "LoRA-GA r=128": 128}.get(cell.row, 8)
        assert config.dataset.max_rows == {"MT-Bench": 52_000}.get(cell.column, 100_000)
    for cell in full_cells("glue"):
        assert (cell.config.trainer.learning_rate, cell.config.dataset.max_length, cell.config.rank) == (1e-4, 128, 8)


def test_options_of_the_command_line_win_in_every_cell(table: Table) -> None:
    cells = cells_of(table, table.full, ["rank=3", "++seed=9"], RUNS)
    assert {(cell.config.rank, cell.config.seed) for cell in cells} == {(3, 9)}
    assert {cell.seed for cell in cells_of(table, table.full, ["seed=7,8,9"], RUNS)} == {7, 8, 9}


@pytest.mark.parametrize("given", ["seed=", "seed=x", "seed=1,-2", "seed=4294967296"])
def test_invalid_seeds_are_refused(table: Table, given: str) -> None:
    with pytest.raises(InvalidInput, match="seed="):
        cells_of(table, table.full, [given], RUNS)


@pytest.mark.parametrize("given", ["name=mine", "output_dir=there"])
def test_options_that_would_give_all_cells_one_run_are_refused(given: str) -> None:
    with pytest.raises(InvalidInput, match="every cell has its own run"):
        check_extra_overrides([given])


def test_a_cells_key_depends_on_what_is_computed_and_not_on_where(table: Table) -> None:
    keys = [cell.key for cell in cells_of(table, table.full, [], RUNS)]
    assert len(set(keys)) == 4
    elsewhere = cells_of(table, table.full, ["cache_dir=c", "device=cpu", "eval=loss"], Path("/else (where), ß"))
    assert [cell.key for cell in elsewhere] == keys  # the eval options do not change a loss
    other = cells_of(table, table.full, ["trainer.learning_rate=2e-3"], RUNS)
    assert not {cell.key for cell in other} & set(keys)


def test_options_that_distinguish_the_rows_are_refused(table: Table) -> None:
    with pytest.raises(InvalidInput, match="this table's rows differ in method"):
        cells_of(table, table.full, ["method=pissa"], RUNS)


def test_a_row_without_a_learning_rate_is_left_out(table: Table) -> None:
    cells = cells_of(table, table.full, [], RUNS, rates={("LoRA", "loss"): 1e-2})
    assert {(cell.row, cell.config.trainer.learning_rate) for cell in cells} == {("LoRA", 1e-2)}


def test_choices_and_recipes_of_the_user_can_be_used(table: Table, tmp_path: Path) -> None:
    lay_out(tmp_path / "user", {"recipes/mine.yaml": "defaults: [quickstart]\nrank: 5\n"})
    cells = cells_of(table, table.full, ["recipe=mine"], RUNS, user_dir=tmp_path / "user")
    assert {cell.config.rank for cell in cells} == {5}


def test_a_fault_in_a_cell_names_its_row_and_column(table: Table) -> None:
    rows = {"LoRA": ["method=lorra"]}
    with pytest.raises(InvalidInput) as raised:
        cells_of(table.model_copy(update={"rows": rows}), table.full, [], RUNS)
    fault = raised.value.faults[0]
    assert fault.where == "LoRA, loss"
    assert "did you mean lora" in fault.hint
