"""`loraga report`: which runs it shows, where it is written, and that it never harms a run."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.cli.app import main
from lora_ga_cli.config.compose import compose
from lora_ga_cli.json_files import read_json
from lora_ga_cli.report.html.record import Report
from lora_ga_cli.stages.report import collect, write_run_report
from lora_ga_cli.stages.report_parts import Parts
from lora_ga_cli.training.cost import COST_NAMES
from lora_ga_cli.training.run_folder import RunFolder, settings
from tests.conftest import build_model, byte_tokenizer
from tests.helpers import Loraga, write_sums

PEAK = 5 * 2**20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short runs, as if on a device whose memory was measured; only the first one writes a report."""
    home = tmp_path_factory.mktemp("home")
    build_model("llama").save_pretrained(home / "base")
    byte_tokenizer().save_pretrained(home / "base")
    write_sums(home / "rows.jsonl")
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
    assert "runs/one/report.html: no space left on device" in said
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
        (["runs/one/report.html"], "a file, not a run folder"),
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


def test_what_loraga_writes_beside_runs_is_no_run(shown: list[Report], loraga: Loraga) -> None:
    _write_beside_runs()
    every = sorted(str(path) for path in Path("runs").glob("[!.]*"))
    assert "left out" not in loraga("report", *every)
    loraga("report", "runs")
    assert [run.name for report in shown for run in report.runs] == ["one", "two"] * 2


class TestDamaged:
    """Something damaged is left out with a line that names the file; the rest is shown, and the exit code is 1."""

    def test_an_adapter_is_neither_inspected_nor_drawn(self, shown: list[Report], loraga: Loraga) -> None:
        began = {"command": ["bin/loraga", "train", "name=one"]}
        _change_manifest("runs/one", lambda manifest: manifest["provenance"].update(began))
        Path("runs/one/inspection.json").unlink()
        _flip(Path("runs/one/adapter_model.safetensors"))
        said = " ".join(loraga("report", "runs/one", code=1).split())
        assert "runs/one/adapter_model.safetensors does not have the bytes that were written" in said
        assert (
            "run its train command again, which makes it anew from the last checkpoint (loraga train name=one)" in said
        )
        (record,) = shown[0].runs
        assert record.inspection is None
        assert "adapter_model.safetensors" in record.absent["inspection"]
        assert record.points
        assert not Path("runs/one/inspection.json").exists()

    def test_an_adapter_has_no_figures_of_an_earlier_inspection(self, shown: list[Report], loraga: Loraga) -> None:
        _flip(Path("runs/one/adapter_model.safetensors"))
        loraga("report", "runs/one", code=1)
        assert shown[0].runs[0].inspection is None

    @pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "of": {"adapter_sha256": 3}}'])
    def test_an_inspection_is_made_again(self, content: str, shown: list[Report], loraga: Loraga) -> None:
        file = Path("runs/one/inspection.json")
        before = read_json(file)
        file.write_text(content)
        said = loraga("report", "runs/one")
        assert said.count("runs/one/inspection.json is damaged") == 1
        assert "it is made again" in said
        assert read_json(file) == before == shown[0].runs[0].inspection

    def test_of_several_runs_each_is_named_where_none_can_be_shown(self, loraga: Loraga) -> None:
        _flip(Path("runs/one/manifest.json"))
        _flip(Path("runs/two/config.yaml"))
        said = loraga("report", "runs/one", "runs/two", code=2)
        assert "runs/one/manifest.json is damaged" in said
        assert "runs/two/config.yaml does not have the bytes" in " ".join(said.split())

    @pytest.mark.parametrize("part", ["inspect_run", "prepare_inputs"])
    def test_an_unexpected_error_in_a_part_is_a_line(
        self, part: str, shown: list[Report], loraga: Loraga, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be one of loraga itself: the rest is shown, and the exit code is 1."""
        Path("runs/one/inspection.json").unlink()

        def fails(*_: Any, **__: Any) -> None:
            raise IndexError("no such row")

        monkeypatch.setattr(f"lora_ga_cli.stages.report_parts.{part}", fails)
        said = " ".join(loraga("report", "runs/one", code=1).split())
        assert re.search("runs/one: it.* cannot be .*: IndexError: no such row", said)
        assert "IndexError: no such row" in " ".join(shown[0].runs[0].absent.values())

    @pytest.mark.parametrize("entries", [None, {"steps": "3"}, {"data": 1}, {"files": {"config.yaml": 2}}], ids=str)
    def test_a_manifest(self, entries: dict[str, Any] | None, shown: list[Report], loraga: Loraga) -> None:
        if entries is None:
            _flip(Path("runs/two/manifest.json"))
        else:
            _change_manifest("runs/two", lambda manifest: manifest.update(entries))
        said = loraga("report", "runs/one", "runs/two", code=1)
        assert "left out: runs/two/manifest.json is damaged" in said
        assert "the adapter beside it can be read" in said
        assert [run.name for run in shown[0].runs] == ["one"]

    def test_a_configuration(self, shown: list[Report], loraga: Loraga) -> None:
        _flip(Path("runs/two/config.yaml"))
        assert "left out: runs/two/config.yaml" in loraga("report", "runs", code=1)
        assert [run.name for run in shown[0].runs] == ["one"]

    @pytest.mark.parametrize("content", ["[]", '{"trained_parameters": "many"}', '{"seconds": 1}', "{"])
    def test_the_cost_of_a_run_that_has_not_finished(self, content: str, shown: list[Report], loraga: Loraga) -> None:
        _change_manifest("runs/one", lambda manifest: [manifest.pop(name) for name in ("finished", *COST_NAMES)])
        Path("runs/one/cost.json").write_text(content)
        assert "runs/one/cost.json is damaged" in loraga("report", "runs/one", code=1)
        assert not set(COST_NAMES) & set(shown[0].runs[0].cost)

    def test_points_of_another_type(self, shown: list[Report], loraga: Loraga) -> None:
        lines = Path("runs/one/metrics.jsonl").read_text().splitlines()
        Path("runs/one/metrics.jsonl").write_text("\n".join(['{"step": 1, "loss": "low"}', *lines[1:], ""]))
        assert "runs/one/metrics.jsonl lost 1 of its" in loraga("report", "runs/one", code=1)
        assert [point["step"] for point in shown[0].runs[0].points if "loss" in point] == [2, 3]

    @pytest.mark.parametrize("content", ["[]", '{"title": "Mine", "rows": 3}', "{"])
    def test_a_table(self, content: str, shown: list[Report], loraga: Loraga) -> None:
        Path("mine").mkdir()
        Path("mine/table.json").write_text(content)
        assert "mine/table.json is damaged" in loraga("report", "mine", code=2)
        assert "left out: mine/table.json is damaged" in loraga("report", "mine", "runs/one", code=1)
        assert (shown[0].tables, [run.name for run in shown[0].runs]) == ([], ["one"])

    def test_the_run_of_a_cell(self, shown: list[Report], loraga: Loraga) -> None:
        content = {"title": "Mine", "headings": ["", "loss"], "rows": [["LoRA", "1.5"]], "notes": []}
        Path("mine").mkdir()
        Path("mine/table.json").write_text(json.dumps(content | {"runs": ["../runs/one", "../runs/two"]}))
        _flip(Path("runs/two/manifest.json"))
        assert "left out: runs/two/manifest.json is damaged" in loraga("report", "mine", code=1)
        assert shown[0].tables[0].rows == [["LoRA", "1.5"]]
        assert [run.name for run in shown[0].runs] == ["one"]


def test_a_folder_that_may_not_be_written_needs_another_output(monkeypatch: pytest.MonkeyPatch, loraga: Loraga) -> None:
    def refused(report: Report, file: Path) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", f"{file}.tmp")

    monkeypatch.setattr("lora_ga_cli.report.html.page.write_page", refused)
    said = " ".join(loraga("report", "runs/one", code=2).split())
    assert "runs/one/report.html: permission denied (give --output FILE" in said


def _write_beside_runs() -> None:
    """What other commands write beside the runs, and a run that was set aside."""
    for folder in ("inspect-one-two", "eval-base/eval"):
        Path("runs", folder).mkdir(parents=True)
    for file in ("report.html", "comparison.png", "inspect-one-two/similarity.png", "eval-base/eval.json"):
        Path("runs", file).touch()
    for name in ("one.old", "one.old-2"):
        shutil.copytree("runs/one", f"runs/{name}")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    file.write_bytes(content)


def _change_manifest(run: str, change: Callable[[dict[str, Any]], object]) -> None:
    file = Path(run, "manifest.json")
    manifest = json.loads(file.read_text())
    manifest.pop("content_sha256", None)
    change(manifest)
    file.write_text(json.dumps(manifest))
