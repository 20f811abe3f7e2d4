"""How far a run is, read from its folder while it is written."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from lora_ga_cli.json_files import write_json
from lora_ga_cli.training import metrics
from lora_ga_cli.training.run_folder import RunFolder
from lora_ga_cli.training.run_names import is_locked
from lora_ga_cli.training.run_state import Points, RunState, WatchedRun, is_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The folder of a run of 100 steps that has begun."""
    run = RunFolder(tmp_path / "r")
    run.path.mkdir()
    run.update_manifest(total_steps=100, failed=None)
    return run


def look(run: RunFolder, now: float = 0.0) -> RunState:
    return WatchedRun(run.path, "r").look(now)


def log(run: RunFolder, *steps: int, pace: float = 2.0) -> None:
    for step in steps:
        measured = {"tokens_per_second": 50.0, "memory_bytes": 3, "time": step * pace}
        metrics.append(run.metrics_file, {"step": step, "loss": 1 / step, "learning_rate": 0.1, **measured})


def test_a_run_is_running_while_a_process_holds_its_lock(run: RunFolder) -> None:
    assert look(run).state == "stopped"
    with run.locked():
        assert look(run).state == "running"
    assert look(run).state == "stopped"


def test_a_run_that_is_being_created_has_a_lock_and_no_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "new")
    assert not is_run(run.path)
    with run.locked():
        assert is_run(run.path)
        assert (look(run).state, look(run).step, look(run).total) == ("running", 0, None)


def test_looking_at_the_lock_keeps_no_run_from_starting_and_writes_nothing(run: RunFolder) -> None:
    with run.locked():
        pass
    before, ended = {file: file.stat() for file in run.path.parent.rglob("*")}, threading.Event()

    def look_again_and_again() -> None:
        while not ended.is_set():
            is_locked(run.path)

    looking = threading.Thread(target=look_again_and_again)
    looking.start()
    try:
        for _ in range(200):
            with run.locked():
                pass
    finally:
        ended.set()
        looking.join()
    assert {file: file.stat().st_mtime_ns for file in run.path.parent.rglob("*")} == {
        file: stat.st_mtime_ns for file, stat in before.items()
    }


def test_what_was_logged_last_is_shown(run: RunFolder) -> None:
    log(run, 10, 20)
    metrics.append(run.metrics_file, {"step": 20, "eval_loss": 0.5, "time": 41.0})
    state = look(run)
    assert state.losses == [0.1, 0.05]
    assert (state.step, state.total, state.loss, state.validation_loss) == (20, 100, 0.05, 0.5)
    assert (state.learning_rate, state.tokens_per_second, state.memory_bytes) == (0.1, 50.0, 3)


def test_the_time_that_is_left_is_that_of_the_remaining_steps(run: RunFolder) -> None:
    log(run, 10, 20, 30)
    with run.locked():
        assert look(run, now=60.0).seconds_left == 140  # 70 steps of 2 s
        assert look(run, now=65.0).seconds_left == 135
        assert look(run, now=1e6).seconds_left == 0
        log(run, 40)
        metrics.append(run.metrics_file, {"step": 41, "loss": 0.1, "time": 10_000.0})  # it was stopped for hours
        assert look(run, now=10_000.0).seconds_left == 118  # 59 steps of 2 s
    assert look(run).seconds_left is None


def test_before_two_points_the_time_is_not_known(run: RunFolder) -> None:
    log(run, 10)
    with run.locked():
        assert look(run).seconds_left is None


def test_a_finished_run_shows_its_result(run: RunFolder) -> None:
    log(run, 10, 100)
    metrics.append(run.metrics_file, {"step": 100, "eval_loss": 0.7})
    run.update_manifest(finished="now", steps=90, training_loss=0.2, validation_loss=0.3, training_seconds=7.5)
    state = look(run)
    assert (state.state, state.step, state.loss, state.validation_loss) == ("finished", 90, 0.2, 0.3)
    assert (state.seconds_taken, state.seconds_left) == (7.5, None)


def test_an_error_is_shown_until_the_run_goes_on(run: RunFolder) -> None:
    run.update_manifest(failed="the loss is nan")
    assert (look(run).state, look(run).error) == ("failed", "the loss is nan")
    with run.locked():
        assert (look(run).state, look(run).error) == ("running", None)


def test_a_line_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    points = Points(file)
    assert points.look() == []
    text = json.dumps({"step": 1, "loss": 2.0}) + "\n" + json.dumps({"step": 2, "loss": 1.0}) + "\n"
    seen = []
    for end in range(len(text) + 1):
        file.write_text(text[:end]) if not end else file.open("a").write(text[end - 1])
        seen.append(len(points.look()))
    assert seen == sorted(seen)
    assert seen[-1] == 2
    assert [point["loss"] for point in points.look()] == [2.0, 1.0]


def test_a_file_that_was_rewound_is_read_again(run: RunFolder) -> None:
    points = Points(run.metrics_file)
    log(run, 10, 20, 30)
    assert len(points.look()) == 3
    metrics.rewind(run.metrics_file, 10)
    assert [point["step"] for point in points.look()] == [10]
    log(run, 20)
    assert [point["step"] for point in points.look()] == [10, 20]
    run.metrics_file.unlink()
    assert points.look() == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', '{"format": 2, "finished": "now", "steps": "ten"}'])
def test_a_damaged_manifest_is_a_state_and_no_reason_to_fail(run: RunFolder, content: str) -> None:
    log(run, 10)
    run.metrics_file.open("a").write('nonsense\n[1]\n{"step": "x"}\n{"step": 20, "loss": "low"}\n')
    run.manifest_file.write_text(content)
    assert (look(run).state, look(run).step, look(run).total) == ("damaged", 10, None)
    assert f"{run.manifest_file} is damaged" in str(look(run).error)


def test_a_state_is_plain_data(run: RunFolder) -> None:
    log(run, 10)
    write_json(run.path / "state.json", look(run).as_data())
