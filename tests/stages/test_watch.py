"""``loraga watch``: a table of runs that follows their folders."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from lora_ga_cli.stages import watch as watching
from lora_ga_cli.stages.watch import shown, watch
from lora_ga_cli.training import metrics
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.run_state import RunState
from tests.helpers import Arguments, Loraga, points

FULL = RunState(
    "a_run_with_a_name",
    "running",
    step=10_000,
    total=20_000,
    losses=[3.0, 2.0, 1.0] * 20,
    loss=1.0,
    validation_loss=1.1,
    learning_rate=1e-4,
    tokens_per_second=12_345.0,
    memory_bytes=2**34,
    seconds_left=36_000.0,
)


def made(name: str, **manifest: object) -> RunFolder:
    run = RunFolder(Path("runs") / name)
    run.path.mkdir(parents=True)
    run.update_manifest(total_steps=100, **manifest)
    metrics.append(run.metrics_file, {"step": 50, "loss": 0.5})
    return run


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    terminal = Console(force_terminal=True, width=100, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(watching, "out", terminal)
    return terminal


def waiting(monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> None:
    """Has each wait between two looks be one of these events; there are no more waits."""
    left = list(events)
    monkeypatch.setattr(watching.time, "sleep", lambda seconds: left.pop(0)())


def test_a_trained_run_and_one_that_failed(loraga: Loraga, arguments: Arguments) -> None:
    short = arguments("llama", "method=lora", "dataset.validation_fraction=0.2")
    loraga("train", *short, "name=good")
    loraga("train", *short, "name=bad", "trainer.learning_rate=1e30", code=1)
    out = loraga("watch", "runs/good", "runs/bad", "--json")
    good, bad = json.loads(out.splitlines()[0])["runs"]
    manifest = json.loads(Path("runs/good/manifest.json").read_text())
    last = next(point for point in reversed(points(Path("runs/good"))) if "loss" in point)
    assert (good["state"], good["step"], good["total"]) == ("finished", 6, 6)
    for name in ("validation_loss", "training_loss"):
        assert good[name.removeprefix("training_")] == manifest[name]
    assert good["seconds_taken"] == manifest["training_seconds"]
    assert good["memory_bytes"] == last["memory_bytes"] > 10 * 2**20
    assert (bad["state"], bad["total"]) == ("failed", 6)
    assert "is nan after step 2, so training stopped" in bad["error"]
    table = loraga("watch")
    assert table.count("bad: the validation loss is nan") == 1  # the line under the table
    assert [line.split()[:3] for line in table.splitlines() if "/6" in line] == [
        ["bad", "failed", "2/6"],
        ["good", "finished", "6/6"],
    ]


def test_folders_that_are_no_runs_are_left_out_with_a_word(loraga: Loraga) -> None:
    made("one")
    Path("runs/notes").mkdir()
    Path("runs/file").touch()
    out = loraga("watch", "runs/one", "runs/notes", "runs/file", "--once")
    assert "50/100" in out
    for name in ("notes", "file"):
        assert f"runs/{name}: no run there, so it is left out" in out


def test_without_any_run_that_is_an_error(loraga: Loraga) -> None:
    assert "runs: no run there" in loraga("watch", code=2)
    assert "nowhere: no run there" in loraga("watch", "nowhere", code=2)


def test_runs_of_one_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    made("one")
    made("../other/one")
    names = [state.name for state in watch([Path("runs"), Path("runs/../other/one")], once=True)]
    assert names == ["runs/one", "other/one"]


def test_the_table_follows_runs_until_all_have_finished(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    one = made("one")
    later = RunFolder(Path("runs/later"))

    def begin_another() -> None:
        metrics.append(one.metrics_file, {"step": 100, "loss": 0.25})
        with later.locked():
            assert [state.state for state in watching.Watch([Path("runs")]).look()] == ["stopped", "running"]
        made("later", finished="now", steps=100)

    waiting(monkeypatch, begin_another, lambda: one.update_manifest(finished="now", steps=100, training_loss=0.25))
    states = watch([Path("runs")], once=False)
    assert {state.name: state.state for state in states} == {"one": "finished", "later": "finished"}
    assert "50/100" in terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "0.2500" in terminal.file.getvalue()  # type: ignore[attr-defined]


def test_ctrl_c_ends_it_without_an_error(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    made("one")

    def press() -> None:
        raise KeyboardInterrupt

    waiting(monkeypatch, press)
    assert [state.state for state in watch([Path("runs")], once=False)] == ["stopped"]


def test_a_terminal_gets_one_table_with_once(terminal: Console) -> None:
    made("one")
    watch([Path("runs")], once=True)
    assert terminal.file.getvalue().count("50/100") == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 160])
def test_the_table_has_the_columns_that_fit(width: int) -> None:
    screen = Console(width=width, file=io.StringIO())
    with screen.capture() as captured:
        screen.print(shown([FULL], screen))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in captured.get()
    for text in ("a_run_with_a_name", "running", "10000/20000"):
        assert text in captured.get()
    assert ("1.0e-04" in captured.get()) == (width >= 160)
