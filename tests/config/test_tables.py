"""Tables as files: every shipped one composes whole, and what is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.tables import all_tables, cells_of, find_table, only, part_of, read_table
from lora_ga_cli.errors import InvalidInput
from tests.config import lay_out

MINE = """
title: Mine
rows: {LoRA: [method=lora], LoRA-GA: [method=lora_ga]}
full:
  overrides: [recipe=quickstart]
  seeds: [1, 2]
  columns: {loss: {measure: loss, value: validation_loss, percent: false}}
"""


@pytest.mark.parametrize("scale", ["full", "tiny"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("coverage", "directions", "epochs") else [pytest.mark.slow])
        for name in sorted(all_tables())
    ],
)
def test_every_cell_of_every_table_is_a_whole_configuration(name: str, scale: str) -> None:
    table = find_table(name)
    part = part_of(table, name, scale)
    part = part.model_copy(
        update={"columns": {name: column.model_copy(update={"needs": None}) for name, column in part.columns.items()}}
    )
    cells = cells_of(table, part, [])
    assert len(cells) == (len(table.rows) - len(part.leave_out)) * len(part.columns) * len(part.seeds)
    assert {cell.config.seed for cell in cells} == set(part.seeds)
    for cell in cells:
        if cell.measure == "score" and cell.config.eval.task == "rows":
            names = {"accuracy", "exact_match", "matthews_correlation", "f1", "loss"}
            assert cell.value in names


@pytest.mark.parametrize(("name", "rows", "columns"), [("llama2", 10, 3), ("glue", 8, 5)])
def test_the_papers_cells_are_all_there(name: str, rows: int, columns: int) -> None:
    table = find_table(name)
    assert len(table.paper) == len(table.rows) == rows
    assert {len(cells) for cells in table.paper.values()} == {columns}
    assert table.source
    assert "Transcribed without the PDF at hand" in table.provenance


def test_the_cells_agree_with_the_papers_means_and_with_the_gains_of_its_abstract() -> None:
    """LoRA's row of GLUE is 0.07 off its mean, which its provenance says."""
    glue, llama = find_table("glue"), find_table("llama2").paper
    stated = {"Full": 87.91, "PiSSA": 84.71, "rsLoRA": 79.64, "LoRA+": 84.95, "DoRA": 82.57, "AdaLoRA": 81.62}
    stated |= {"LoRA-GA": 87.77, "LoRA": 82.01}
    for row, cells in glue.paper.items():
        assert sum(cell[0] for cell in cells.values()) / 5 == pytest.approx(stated[row], abs=0.006)
    assert "LoRA's, whose mean is 82.01" in glue.provenance
    gains = {column: llama["LoRA-GA"][column][0] - llama["LoRA"][column][0] for column in llama["LoRA"]}
    assert gains == pytest.approx({"MT-Bench": 0.34, "GSM8K": 11.52, "HumanEval": 5.05})


@pytest.mark.slow
def test_full_scale_trains_as_the_paper_does() -> None:
    table = find_table("llama2")
    for cell in cells_of(table, table.full, ["eval.execute_code=true"]):
        trainer, config = cell.config.trainer, cell.config
        assert (trainer.learning_rate, trainer.batch_size, trainer.epochs) == (2e-5, 32, 1)
        assert (config.alpha, config.target_modules) == (16, "all-linear")
        assert config.rank == {"LoRA-GA r=32": 32, "LoRA-GA r=128": 128}.get(cell.row, 8)
        assert config.dataset.max_rows == {"MT-Bench": 52_000}.get(cell.column, 100_000)
    table = find_table("glue")
    for cell in cells_of(table, table.full, []):
        assert (cell.config.trainer.learning_rate, cell.config.dataset.max_length, cell.config.rank) == (1e-4, 128, 8)


def test_a_command_lines_options_win_and_count_for_every_cell(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    table = read_table(tmp_path / "mine.yaml")
    cells = cells_of(table, table.full, ["rank=3", "seed=9"])
    assert {(cell.config.rank, cell.config.seed) for cell in cells} == {(3, 9)}
    assert len({cell.key for cell in cells_of(table, table.full, [])}) == 4


def test_rows_and_columns_can_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    table = read_table(tmp_path / "mine.yaml")
    chosen, part = only(table, table.full, ["LoRA"], [])
    assert {cell.row for cell in cells_of(chosen, part, [])} == {"LoRA"}
    with pytest.raises(InvalidInput, match="no row 'LoRa'") as raised:
        only(table, table.full, ["LoRa"], ["los"])
    assert len(raised.value.faults) == 2


def read_and_compose(file: Path) -> None:
    table = read_table(file)
    cells_of(table, table.full, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("method=lora]", "method=lorra]"), "did you mean lora"),
        (("method=lora]", "hydra/launcher=joblib]"), "hydra/launcher=joblib is refused in a file"),
        (("method=lora]", "model.trust_remote_code=true]"), "is refused in a file"),
        (("method=lora]", "eval.execute_code=true]"), "is refused in a file"),
        (("measure: loss", "measure: lost"), "measure"),
        (("title: Mine", "titel: Mine"), "titel"),
        (("seeds: [1, 2]", "seeds: []"), "seeds"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    (tmp_path / "mine.yaml").write_text(MINE.replace(*change))
    with pytest.raises(InvalidInput) as raised:
        read_and_compose(tmp_path / "mine.yaml")
    assert said in " ".join(f"{fault.where} {fault.what} {fault.hint}" for fault in raised.value.faults)


def test_an_unknown_table_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match="no table 'ablaton'") as raised:
        find_table("ablaton")
    assert "ablation" in raised.value.faults[0].hint


def test_a_users_tables_win(tmp_path: Path) -> None:
    lay_out(tmp_path / "own", {"tables/glue.yaml": MINE})
    assert find_table("glue", tmp_path / "own").title == "Mine"
