"""A table's results beside the paper's."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ga_cli.reproduce.formats import FormatName
from lora_ga_cli.reproduce.results import Results, csv_text, markdown, write

RESULTS = Results(
    title="A table",
    rows=["LoRA", "LoRA-GA", "Full"],
    columns=["GSM8K", "loss"],
    values={("LoRA", "GSM8K"): [0.40, 0.42, 0.47], ("LoRA-GA", "GSM8K"): [0.5], ("LoRA", "loss"): [1.25, 1.75, 1.5]},
    seeds={"LoRA": 3, "LoRA-GA": 3, "Full": 3},
    formats={"GSM8K": "percent", "loss": "number"},
    paper={"LoRA": {"GSM8K": [42.08, 0.04]}, "Full": {"GSM8K": [54.2, 0.42]}},
    notes=["Paper: somewhere."],
    rates={("LoRA", "GSM8K"): 3e-4},
)


def test_a_cell_shows_mean_and_deviation_over_seeds_beside_the_papers() -> None:
    spread = statistics.stdev([40, 42, 47])
    assert RESULTS.text("LoRA", "GSM8K") == f"43.00 ± {spread:.2f} at 0.0003"
    assert RESULTS.paper_text("LoRA", "GSM8K") == "42.08 ± 0.04 (+0.92)"
    assert RESULTS.text("LoRA", "loss") == "1.500 ± 0.250"


def test_a_cell_shows_how_many_seeds_finished_and_an_empty_one_has_no_difference() -> None:
    assert RESULTS.text("LoRA-GA", "GSM8K") == "50.00 (1 of 3 seeds)"
    assert RESULTS.text("Full", "GSM8K") == "–"
    assert RESULTS.paper_text("Full", "GSM8K") == "54.20 ± 0.42"
    assert RESULTS.paper_text("LoRA-GA", "GSM8K") == ""


def test_markdown_has_a_column_of_the_paper_where_the_paper_has_one() -> None:
    lines = markdown(RESULTS).splitlines()
    assert lines[2] == "|  | GSM8K | GSM8K, paper | loss |"
    assert lines[4] == f"| LoRA | {RESULTS.text('LoRA', 'GSM8K')} | 42.08 ± 0.04 (+0.92) | 1.500 ± 0.250 |"
    assert "Paper: somewhere." in lines


@pytest.mark.parametrize(
    ("name", "values", "text"),
    [
        ("number", [1.0, 2.0], "1.500 ± 0.707"),
        ("percent", [0.5, 0.5], "50.00 ± 0.00"),
        ("bytes", [3 * 2**20], "3.0 MiB"),
        ("bytes", [2**20, 2**20], "1.0 MiB"),
        ("bytes", [2**20, 3 * 2**20], "2.0 MiB ± 1.4 MiB"),
        ("seconds", [0.12345], "0.123 s"),
        ("count", [1_234_567, 1_234_567], "1,234,567"),
    ],
)
def test_a_column_has_a_format(name: FormatName, values: list[float], text: str) -> None:
    results = replace(RESULTS, values={("LoRA", "loss"): values}, formats={"loss": name}, seeds={"LoRA": len(values)})
    assert results.text("LoRA", "loss") == text


def test_rows_that_differ_in_their_seeds_say_how_many_they_have() -> None:
    values = {("LoRA", "loss"): [1.25, 1.75], ("Full", "loss"): [1.0], ("LoRA-GA", "loss"): [1.5]}
    seeds = {"LoRA": 2, "Full": 1, "LoRA-GA": 2}
    results = replace(RESULTS, values=values, columns=["loss"], seeds=seeds, paper={})
    assert results.headings == ["", "seeds", "loss"]
    assert results.lines == [
        ["LoRA", "2", "1.500 ± 0.354"],
        ["LoRA-GA", "2", "1.500 (1 of 2 seeds)"],
        ["Full", "1", "1.000"],
    ]


def test_columns_of_the_same_trainings_show_the_learning_rate_once() -> None:
    rates = {("LoRA", "loss"): 3e-4, ("LoRA", "size"): 3e-4}
    values = {("LoRA", "loss"): [1.5], ("LoRA", "size"): [2.0]}
    results = replace(
        RESULTS,
        rows=["LoRA"],
        columns=["loss", "size"],
        values=values,
        rates=rates,
        same_trainings=["size"],
        formats={"loss": "number", "size": "count"},
        seeds={"LoRA": 1},
        paper={},
    )
    assert results.lines == [["LoRA", "1.500 at 0.0003", "2"]]
    rows = list(csv.DictReader(csv_text(results).splitlines()))
    assert [row["learning_rate"] for row in rows] == ["0.0003", "0.0003"]


def test_csv_holds_numbers_for_programs() -> None:
    rows = {(row["row"], row["column"]): row for row in csv.DictReader(csv_text(RESULTS).splitlines())}
    assert len(rows) == 6
    cell = rows["LoRA", "GSM8K"]
    assert float(cell["mean"]) == 43.0
    assert float(cell["difference"]) == 0.92
    assert (cell["seeds"], cell["learning_rate"], cell["paper"]) == ("3", "0.0003", "42.08")
    assert rows["Full", "GSM8K"]["mean"] == ""


@pytest.mark.figures
def test_files_are_written_with_a_picture(tmp_path: Path) -> None:
    files = write(RESULTS, tmp_path, runs=["../runs/one"])
    assert [file.name for file in files] == ["table.md", "table.csv", "table.json", "table.png"]
    assert files[3].read_bytes().startswith(b"\x89PNG")
    content = json.loads(files[2].read_text())
    assert (content["headings"], content["rows"]) == (RESULTS.headings, RESULTS.lines)
    assert content["runs"] == ["../runs/one"]
