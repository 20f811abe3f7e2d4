"""`loraga report`: which runs it shows, where it is written, and that it never harms a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.cli.app import main
from lora_ga_cli.config.compose import compose
from lora_ga_cli.files import read_json
from lora_ga_cli.report.html.record import Report
from lora_ga_cli.stages.report import collect, write_run_report
from lora_ga_cli.stages.report_parts import Parts
from lora_ga_cli.training.run_folder import RunFolder, settings
from tests.conftest import build_model, byte_tokenizer
from tests.helpers import Loraga

PEAK = 5 * 2**20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs, as if on a device whose memory was measured; only the first one writes a report."""
    home = tmp_path_factory.mktemp("home")
    build_model("llama").save_pretrained(home / "base")
    byte_tokenizer().save_pretrained(home / "base")
    rows = [{"prompt": f"{number}+1=", "answer": f"{number + 1}"} for number in range(24)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LORAGA_CACHE", str(home / "cache"))
        patch.setattr("lora_ga_cli.training.cost.peak_memory_bytes", lambda _: PEAK)
        for name, *options in (("one", "rank=4"), ("two", "rank=2", "trainer.report=false")):
            assert main(["train", *command(home), f"name={name}", *options]) == 0
    return home


def command(home: Path) -> list[str]:
    """The options of a run."""
    model = ["model=causal_lm", f"model.path={home / 'base'}", "model.dtype=float32", "device=cpu", "method=lora"]
    data = ["dataset=jsonl", f"dataset.train_file={home / 'rows.jsonl'}", "dataset.validation_fraction=0.25"]
    short = ["dataset.max_length=64", "trainer.max_steps=3", "trainer.logging_steps=1", "trainer.learning_rate=1e-3"]
    return [*model, *data, *short]


@pytest.fixture(autouse=True)
def laid_out(home: Path) -> None:
    """Copies of the runs in the test's own folder, with the second one's name for the first one's report."""
    shutil.copytree(home / "runs", "runs")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Report]:
    """What each report shows, which is rendered by tests of its own."""
    found: list[Report] = []

    def write_page(report: Report, file: Path) -> int:
        found.append(report)
        file.write_text(report.title)
        return 1

    monkeypatch.setattr("lora_ga_cli.report.html.page.write_page", write_page)
    return found


def test_a_run_writes_its_report_unless_that_is_switched_off() -> None:
    text = Path("runs/one/report.html").read_text()
    assert "lora on " in text
    assert "name: one" in text
    assert 'id="loss"' in text
    assert not Path("runs/two/report.html").exists()


def test_whether_a_report_is_written_makes_no_other_run(home: Path) -> None:
    assert settings(compose(command(home))) == settings(compose([*command(home), "trainer.report=false"]))


def test_a_record_has_what_the_run_wrote() -> None:
    record = collect(RunFolder(Path("runs/one")), "mine", Parts())
    manifest = read_json(Path("runs/one/manifest.json"))
    assert (record.name, record.manifest, record.config["rank"]) == ("mine", manifest, 4)
    assert [point["step"] for point in record.points if "loss" in point] == [1, 2, 3]
    assert record.cost["trained_parameters"] == manifest["trained_parameters"]
    assert record.finished


def test_measured_memory_has_the_forecast_of_a_dry_run_beside_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cost = collect(RunFolder(Path("runs/one")), "mine", Parts()).cost
    capsys.readouterr()
    assert main(["train", *command(home), "name=new", "rank=4", "--dry-run", "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]["training"]["peak_memory"]
    assert (cost["peak_memory_bytes"], cost["forecast_peak_memory_bytes"]) == (PEAK, forecast)


@pytest.mark.reports
def test_a_report_that_cannot_be_written_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(report: Report, file: Path) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lora_ga_cli.report.html.page.write_page", full)
    write_run_report(RunFolder(Path("runs/one")))
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "loraga report runs/one" in said


@pytest.mark.reports
def test_an_evaluation_renews_the_report_of_a_run_that_has_one(loraga: Loraga, shown: list[Report]) -> None:
    loraga("eval", "runs/one", "runs/two", "eval=loss", "device=cpu")
    (report,) = shown
    assert report.title == "one"
    (record,) = report.runs
    assert record.evaluations[0]["values"]["loss"] > 0


@pytest.mark.parametrize(
    ("words", "file", "names"),
    [
        (["runs/one"], "runs/one/report.html", ["one"]),
        (["runs/one", "runs/two"], "runs/report.html", ["one", "two"]),
        (["runs"], "runs/report.html", ["one", "two"]),
        (["runs/two", "runs", "--output", "deep/mine.html"], "deep/mine.html", ["two", "one"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_named_is_shown_and_where_it_is_written(
    words: list[str], file: str, names: list[str], loraga: Loraga
) -> None:
    out = loraga("report", *words)
    assert file in out
    text = Path(file).read_text()
    assert all(name in text for name in names)


def test_the_result_of_the_command_is_data(shown: list[Report], capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/report.html").touch()
    Path("runs/empty").mkdir()
    capsys.readouterr()
    assert main(["report", "runs/empty", "runs/one", "runs/report.html", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["report"], found["runs"]) == ("runs/one/report.html", ["runs/one"])
    (left_out,) = found["left_out"]
    assert left_out["folder"] == "runs/empty"
    assert "neither a run" in left_out["reason"]


def test_runs_of_the_same_name_are_told_apart(shown: list[Report], loraga: Loraga) -> None:
    shutil.copytree("runs/one", "other/one")
    loraga("report", "runs/one", "other/one")
    assert [run.name for run in shown[0].runs] == ["runs/one", "other/one"]


def test_a_run_of_an_earlier_version_is_left_out_and_others_are_shown(shown: list[Report], loraga: Loraga) -> None:
    _change_manifest("runs/two", lambda manifest: manifest.update(format=1))
    out = loraga("report", "runs", code=1)
    assert "left out: runs/two was made by an earlier version" in out
    assert [run.name for run in shown[0].runs] == ["one"]


def test_a_run_that_has_not_finished_is_shown(loraga: Loraga) -> None:
    _change_manifest("runs/one", lambda manifest: manifest.pop("finished"))
    loraga("report", "runs/one")
    assert "has not finished: the last logged step is 3" in Path("runs/one/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/none"], "no such run folder"),
        (["rows.jsonl"], "a file, not a run folder"),
        (["runs/one/eval"], "neither a run"),
        (["runs/one/report.html"], "neither a run"),
        (["runs/one", "--output", "runs"], "is a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_is_an_error_of_one_line(words: list[str], said: str, loraga: Loraga) -> None:
    Path("rows.jsonl").touch()
    Path("runs/one/eval").mkdir()
    assert said in loraga("report", *words, code=2)


def test_a_reproduced_table_is_shown_with_the_runs_of_its_cells(shown: list[Report], loraga: Loraga) -> None:
    content = {"format": 1, "title": "Mine", "headings": ["", "loss"], "rows": [["LoRA", "1.5"]], "notes": ["A note."]}
    folder = Path("reproduced/mine")
    folder.mkdir(parents=True)
    (folder / "table.json").write_text(json.dumps(content | {"runs": ["../../runs/one", "../../runs/gone"]}))
    assert "reproduced/mine/report.html" in loraga("report", "reproduced/mine")
    (table,) = shown[0].tables
    assert (shown[0].title, table.rows, table.notes) == ("Mine", [["LoRA", "1.5"]], ["A note."])
    assert [run.name for run in shown[0].runs] == ["one"]


def _change_manifest(run: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = Path(run, "manifest.json")
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
