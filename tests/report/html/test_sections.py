"""What each part of a report shows of runs."""

from __future__ import annotations

import pytest

from lora_ga_cli.report.html.page import render
from lora_ga_cli.report.html.record import Report, RunRecord, TableRecord
from lora_ga_cli.report.html.section import SectionContent
from lora_ga_cli.report.html.sections.configuration import Configuration
from lora_ga_cli.report.html.sections.cost import Cost
from lora_ga_cli.report.html.sections.loss import Loss
from lora_ga_cli.report.html.sections.provenance import Provenance
from lora_ga_cli.report.html.sections.result import Result, commands_of
from lora_ga_cli.report.html.sections.table import Table
from tests.report.html.conftest import points, record

SCORED = {
    "values": {"accuracy": 0.75},
    "shares": ["accuracy"],
    "options": {"task": "gsm8k"},
    "rows": 200,
    "split": "test",
    "time": "1",
}


def shown(content: SectionContent | None) -> SectionContent:
    assert content is not None
    return content


def test_the_result_is_one_line_and_one_for_each_evaluation() -> None:
    (line,) = Result().content([record(evaluations=[SCORED], size="rank 8")]).values["lines"]
    assert line.what == "lora_ga on base, rank 8"
    assert line.losses == [("validation loss", "0.3580"), ("training loss (of the last step)", "0.3100")]
    assert line.scores == [("gsm8k", "test, 200 scored", [("accuracy", "75.0%")])]
    assert line.how_long == "after 40 steps in 1:39"


def test_of_many_runs_the_best_one_has_a_line() -> None:
    runs = [record(f"r{rank}", rank=rank) for rank in (32, 16, 4, 8, 64)]
    content = Result().content(runs)
    assert [line.name for line in content.values["lines"]] == ["r4"]
    assert len(content.values["commands"]) == 5


def test_a_command_that_began_several_runs_is_shown_once() -> None:
    command = ["python", "-m", "lora_ga_cli", "train", "-m", "rank=4,8"]
    runs = [record(name, manifest={"provenance": {"command": command}}) for name in ("a", "b")]
    (found,) = commands_of(runs)
    assert found.text == "loraga train -m rank=4,8"
    assert found.runs == ["a", "b"]
    assert found.sweep
    assert "The command of the sweep that gives them" in render(Report("2 runs", runs))


def test_losses_of_all_runs_are_in_the_charts_and_in_tables() -> None:
    content = shown(Loss().content([record("a"), record("b")]))
    loss, rate = content.data["charts"]
    assert [(line["run"], line["name"], line["strong"], len(line["x"])) for line in loss["lines"]] == [
        (0, "training", False, 40),
        (0, "validation", True, 4),
        (1, "training", False, 40),
        (1, "validation", True, 4),
    ]
    assert loss["logarithmic"]
    assert not rate["logarithmic"]
    (_, lines), _ = content.values["tables"]
    assert lines[9] == ["10", "0.8730", "0.9230", "0.00075"]


def test_a_run_of_many_steps_lists_some_of_them_and_every_evaluation() -> None:
    content = shown(Loss().content([record(points=points(400))]))
    ((_, lines),) = content.values["tables"]
    assert len(lines) == 60
    assert [line[0] for line in lines if line[2] != "–"] == [str(step) for step in range(10, 401, 10)]


def test_values_that_are_no_numbers_are_left_out_of_the_chart() -> None:
    logged = [*points(3), {"step": 4, "loss": float("nan")}, {"step": 5, "loss": "broken"}]
    content = shown(Loss().content([record(points=logged)]))
    assert content.data["charts"][0]["lines"][0]["x"] == [1, 2, 3]


def test_more_runs_than_are_drawn_are_counted() -> None:
    content = shown(Loss().content([record(str(number), points=points(3)) for number in range(33)]))
    assert content.values["not_drawn"] == 3
    assert len(content.data["runs"]) == 30


def test_measured_memory_stands_beside_its_forecast() -> None:
    content = shown(Cost().content([record()]))
    rows = dict(content.values["rows"])
    assert rows["peak memory, measured"] == "3.00 GiB"
    assert rows["peak memory, forecast"] == "2.00 GiB"
    assert content.values["note"] == ""


def test_memory_that_was_not_measured_has_a_reason() -> None:
    manifest = {**record().manifest, "peak_memory_bytes": None}
    content = shown(Cost().content([record(manifest=manifest)]))
    assert "peak memory, measured" not in dict(content.values["rows"])
    assert "CUDA" in content.values["note"]


def test_the_configuration_begins_with_what_differs() -> None:
    content = shown(Configuration().content([record("a"), record("b", rank=16)]))
    assert content.values["found"].different == {"rank": ["8", "16"]}
    assert "seed" in content.values["found"].same


def test_one_run_has_its_complete_configuration() -> None:
    assert "method:\n  name: lora_ga\n" in shown(Configuration().content([record()])).values["yaml"]


def test_the_provenance_has_versions_source_and_digests() -> None:
    same = shown(Provenance().content([record()])).values["found"].same
    assert same["torch"] == "2.13.0"
    assert same["git commit"] == "0123abcd (with uncommitted changes)"
    assert same["data · train · sha256"] == "5e" * 32
    assert same["file adapter_model.safetensors"] == "ab" * 32
    assert same["started"] == "2026-01-02 03:04:05 UTC"


def logged(*steps: int) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1.0} for step in steps] + [{"step": steps[-1], "eval_loss": 1.0}]


def test_a_training_loss_says_over_how_many_steps_it_is_the_mean() -> None:
    """It is logged at the end for the steps since it was logged before."""
    one, other = (record(name, points=logged(*steps)) for name, steps in (("a", (1, 36, 40)), ("b", (1, 20, 30, 40))))
    (line,) = Result().content([one]).values["lines"]
    assert line.losses[1] == ("training loss (mean of the last 4 steps)", "0.3100")
    (same,) = shown(Table().content([one, one])).values["tables"]
    assert same.notes == ["The training loss is the mean of the last 4 steps."]
    (different,) = shown(Table().content([one, other])).values["tables"]
    assert "of the last 4 to 10 steps" in different.notes[0]


def test_the_table_of_runs_has_what_differs_and_marks_the_best() -> None:
    runs = [record("a", rank=4), record("b", rank=8, evaluations=[SCORED])]
    (table,) = shown(Table().content(runs)).values["tables"]
    headings = ["run", "rank", "steps", "validation loss", "training loss", "gsm8k: accuracy", "time"]
    assert list(table.headings) == headings
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a", "4", "40", "0.3540", "0.3100", "–", "1:39"],
        ["b", "8", "40", "0.3580", "0.3100", "75.0%", "1:39"],
    ]
    assert [row[3].best for row in table.rows] == [True, False]
    assert [row[4].best for row in table.rows] == [False, False]


def test_scores_on_different_numbers_of_rows_say_so() -> None:
    fewer = {**SCORED, "rows": 50}
    runs = [record("a", evaluations=[SCORED]), record("b", evaluations=[fewer])]
    (table,) = shown(Table().content(runs)).values["tables"]
    assert [row[-2].text for row in table.rows] == ["75.0% of 200", "75.0% of 50"]


def test_of_several_results_of_one_task_the_last_one_counts() -> None:
    later = {**SCORED, "values": {"accuracy": 0.5}, "time": "2"}
    (line,) = Result().content([record(evaluations=[later, SCORED])]).values["lines"]
    assert line.scores[0][2] == [("accuracy", "50.0%")]


def test_one_run_alone_has_no_table() -> None:
    assert Table().content([record()]) is None


def test_a_reproduced_table_is_sorted_by_the_numbers_that_its_cells_begin_with() -> None:
    table = TableRecord("LoRA-GA", ["", "GSM8K"], [["LoRA", "42.08 ± 0.04"], ["LoRA-GA", "53.60 (+1.2)"]])
    (found,) = shown(Table().of(Report("LoRA-GA", [], [table]))).values["tables"]
    assert [row[1].value for row in found.rows] == [42.08, 53.6]
    assert found.numeric == [False, True]


@pytest.mark.parametrize("runs", [[record("a"), record("b")], [record(str(number)) for number in range(6)]], ids=len)
def test_reports_of_several_runs_render(runs: list[RunRecord]) -> None:
    text = render(Report("runs", runs))
    assert all(f'id="{part}"' in text for part in ("result", "table", "loss", "cost", "configuration", "provenance"))
