"""Tables as files: the paper's values, where files come from, and what is refused in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.reproduce.table import select
from lora_ga_cli.reproduce.table_files import find_table, read_table
from tests.config import TABLE, lay_out


@pytest.mark.parametrize(("name", "rows", "columns"), [("llama2", 10, 3), ("glue", 8, 5)])
def test_all_cells_of_the_paper_are_there(name: str, rows: int, columns: int) -> None:
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


def test_rows_and_columns_can_be_selected(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TABLE)
    table = read_table(tmp_path / "mine.yaml")
    selected, part = select(table, table.full, ["LoRA"], [])
    assert list(selected.rows) == ["LoRA"]
    assert list(part.columns) == ["loss"]
    with pytest.raises(InvalidInput, match="no row 'LoRa'") as raised:
        select(table, table.full, ["LoRa"], ["los"])
    assert len(raised.value.faults) == 2


def test_a_selection_of_rows_has_no_leaders() -> None:
    """The best of some rows are not the best of the table, and without the first column nothing tells the best."""
    table = find_table("methods")
    assert select(table, table.full, [], [])[1].leaders is not None
    assert select(table, table.full, [], ["saved rank", "validation loss"])[1].leaders is not None
    assert select(table, table.full, ["LoRA"], [])[1].leaders is None
    assert select(table, table.full, [], ["saved rank"])[1].leaders is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("method=lora]", "hydra/launcher=joblib]"), "hydra/launcher=joblib: a file cannot configure Hydra"),
        (("method=lora]", "'eval.judge={base_url: x, key_variable: HOME}']"), "eval.judge.key_variable"),
        (("method=lora]", "'name=${oc.env:HOME}']"), "oc.env"),
        (("method=lora]", "cache_dir=/etc/x]"), "cache_dir"),
        (("method=lora]", "model.trust_remote_code=true]"), "is refused in a file"),
        (("method=lora]", "eval.execute_code=true]"), "is refused in a file"),
        (("measure: loss", "measure: lost"), "no measure 'lost'; did you mean loss?"),
        (("title: Mine", "titel: Mine"), "no key 'titel' did you mean title?"),
        (("format: number", "formt: number"), "no key 'formt' did you mean format?"),
        (("format: number", "format: byte"), "'percent', 'number', 'bytes', 'seconds' or 'count'"),
        (("format: number", "percent: false"), "no key 'percent' did you mean format: percent, or format: number"),
        (("seeds: [1, 2]", "seeds: [1]\n  leaders: {count: 2, seeds: [2, 1]}"), "every row has seed 1 already"),
        (
            ("seeds: [1, 2]", "seeds: [1]\n  tune_lr: {rates: [1, 3, 9], refine: 3, held_out: [rank=2]}"),
            "it must be below the factor between two rates, 3",
        ),
        (("seeds: [1, 2]", "seeds: [1]\n  fair: {rates: [1], held_out: []}"), "no key 'fair' did you mean tune_lr?"),
        (("seeds: [1, 2]", "seeds: [1]\n  tune_lr: {rates: [1], most: 5}"), "no key 'most' did you mean max_rates?"),
        (("seeds: [1, 2]", "seeds: []"), "seeds"),
        (("seeds: [1, 2]", "seeds: [-1]"), "seeds"),
        (("seeds: [1, 2]", "seeds: [1]\n  tune_lr: {rates: [3e-4, 1e-4, 3e-5], held_out: [rank=2]}"), "must ascend"),
        (
            ("seeds: [1, 2]", "seeds: [1]\n  tune_lr: {rates: [1e-4, 3e-4, 4e-4], held_out: [rank=2]}"),
            "each the same multiple",
        ),
    ],
)
def test_every_fault_of_a_file_is_reported(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "mine.yaml").write_text(TABLE.replace(*change))
    with pytest.raises(InvalidInput) as raised:
        read_table(tmp_path / "mine.yaml")
    assert message in " ".join(f"{fault.where} {fault.what} {fault.hint}" for fault in raised.value.faults)


def test_an_unknown_table_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InvalidInput, match="no table 'ablaton'") as raised:
        find_table("ablaton")
    assert "ablation" in raised.value.faults[0].hint


def test_a_users_table_replaces_a_shipped_one(tmp_path: Path) -> None:
    lay_out(tmp_path / "user", {"tables/glue.yaml": TABLE})
    assert find_table("glue", tmp_path / "user").title == "Mine"
