"""``trainer.report_to``: services of experiment tracking get the values of a run, through transformers' callbacks."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.training.run_folder import RunFolder, run_name, settings
from lora_ga_cli.training.trackers import Trackers, check_trackers
from tests.helpers import Arguments, Loraga, configured, only_run, points

WANDB = '''
"""A service that writes down what it is told."""
import json, os
from types import SimpleNamespace

run = None
config = {}

def _note(what, **values):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps({"what": what, **values}, default=str) + "\\n")

class _Config(dict):
    def update(self, values, allow_val_change):
        _note("config", rank=values["peft_config"]["default"].r)

def init(**given):
    global run, config
    if os.environ.get("WANDB_FAILS") == "at once":
        raise RuntimeError("no API key configured\\nand more")
    run, config = SimpleNamespace(summary={}, _label=lambda code: None), _Config()
    _note("init", **given)

def log(values):
    if os.environ.get("WANDB_FAILS") == "later" and values["train/global_step"] > 3:
        raise RuntimeError("the server is gone")
    _note("log", **values)

def finish(exit_code):
    global run
    run = None
    _note("finish", exit_code=exit_code)
'''


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package ``wandb`` is installed; the file that holds what it was told."""
    inner = tmp_path / "site" / "wandb" / "sdk" / "lib"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    (inner.parents[1] / "__init__.py").write_text(WANDB)
    (inner / "config_util.py").write_text("class ConfigError(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, name, None)  # what a test imports is forgotten after it
        del sys.modules[name]
    monkeypatch.setenv("NOTES", str(tmp_path / "notes.jsonl"))
    return tmp_path / "notes.jsonl"


def told(file: Path, what: str) -> list[dict[str, object]]:
    notes = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in note.items() if key != "what"} for note in notes if note["what"] == what]


def test_a_service_gets_the_values_of_a_run_under_its_name_and_the_users_project(
    loraga: Loraga, arguments: Arguments, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    loraga("train", *arguments("llama", "method=lora", "name=r", "trainer.report_to=[wandb]"))
    assert told(notes, "init") == [{"project": "mine", "name": "r"}]
    assert told(notes, "config") == [{"rank": 4}]
    assert told(notes, "finish") == [{"exit_code": 0}]
    sent = {note["train/global_step"]: note["train/loss"] for note in told(notes, "log") if "train/loss" in note}
    assert sent == {point["step"]: point["loss"] for point in points(only_run()) if "loss" in point}


def test_the_links_of_a_chain_are_one_run_of_all_steps(loraga: Loraga, arguments: Arguments, notes: Path) -> None:
    chain = ["method=chain_lora_ga", "method.links=2", "method.init=gaussian"]
    loraga("train", *arguments("llama", *chain, "trainer.report_to=[wandb]"))
    assert len(told(notes, "init")) == len(told(notes, "finish")) == 1
    steps = [note["train/global_step"] for note in told(notes, "log") if "train/loss" in note]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_the_jobs_of_a_sweep_are_runs_of_their_own(loraga: Loraga, arguments: Arguments, notes: Path) -> None:
    short = ["method=lora", "trainer.max_steps=1", "trainer.report_to=[wandb]"]
    loraga("train", "-m", *arguments("llama", *short, "seed=1,2"))
    assert len({note["name"] for note in told(notes, "init")}) == 2
    assert len(told(notes, "finish")) == 2


def test_a_service_that_cannot_begin_ends_the_command_which_goes_on_without_it(
    loraga: Loraga, arguments: Arguments, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = arguments("llama", "method=lora", "trainer.max_steps=1")
    monkeypatch.setenv("WANDB_FAILS", "at once")
    out = loraga("train", *short, "trainer.report_to=[wandb]", code=1)
    assert "trainer.report_to=wandb failed: no API key configured. The same command without it goes on" in out
    loraga("train", *short)  # the same run: where its values are sent changes no result


def test_a_service_that_fails_later_costs_no_training(
    loraga: Loraga, arguments: Arguments, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_FAILS", "later")
    out = loraga("train", *arguments("llama", "method=lora", "trainer.report_to=[wandb]"))
    assert out.count("trainer.report_to=wandb failed, and gets nothing more of this run: the server is gone") == 1
    assert [point["step"] for point in points(only_run()) if "loss" in point] == [1, 2, 3, 4, 5, 6]


def test_a_training_that_failed_is_a_failed_run_at_the_service(
    loraga: Loraga, arguments: Arguments, notes: Path
) -> None:
    run = ["method=lora", "trainer.learning_rate=1e30", "trainer.report_to=[wandb]"]
    assert "training stopped" in loraga("train", *arguments("llama", *run), code=1)
    assert told(notes, "finish") == [{"exit_code": 1}]


def test_only_the_main_process_tells_a_service_anything(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not Trackers(["wandb"], RunFolder(Path("runs/r")))._callbacks
    monkeypatch.setenv("RANK", "0")
    assert [*Trackers(["wandb"], RunFolder(Path("runs/r")))._callbacks] == ["wandb"]


def test_missing_packages_are_named_together_before_anything_is_loaded(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    absent = ("trackio", "mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else found(name, *rest))
    out = loraga("train", *arguments("llama", "trainer.report_to=[mlflow,trackio]"), code=2)
    assert "trainer.report_to=mlflow: the package mlflow is not installed (pip install mlflow)" in out
    assert "trainer.report_to=trackio: the package trackio is not installed (pip install trackio)" in out
    assert not Path("runs").exists()


def test_a_variable_that_turns_a_service_off_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "true")
    with pytest.raises(InvalidInput, match="the variable DISABLE_MLFLOW_INTEGRATION turns it off"):
        check_trackers(configured("lora", "trainer.report_to=[mlflow]"))


@pytest.mark.parametrize(
    "given",
    [{"report_to": ["wandb"]}, {"extra": {"trackio_space_id": "someone/space"}}],
    ids=["report_to", "trackio_space_id"],
)
def test_a_file_cannot_send_data(loraga: Loraga, given: dict[str, object]) -> None:
    Path("mine/recipes").mkdir(parents=True)
    recipe = {"defaults": ["quickstart"], "trainer": given}
    Path("mine/recipes/evil.yaml").write_text(yaml.safe_dump(recipe))
    out = loraga("train", "recipe=evil", "--config-dir", "mine", "--dry-run", code=2)
    assert "is refused in a file (that is for the command line)" in out


@pytest.mark.parametrize(
    ("written", "said"),
    [("[tensorbord]", "report_to"), ("[wandb,wandb]", "names 'wandb' twice"), ("wandb", "report_to")],
)
def test_other_names_are_refused(loraga: Loraga, arguments: Arguments, written: str, said: str) -> None:
    assert said in loraga("train", *arguments("llama", f"trainer.report_to={written}"), code=2)


def test_where_values_are_sent_is_no_part_of_a_run() -> None:
    plain = configured("lora")
    sent = configured("lora", "trainer.report_to=[wandb]", "trainer.extra={project: mine, trackio_space_id: a/b}")
    assert settings(sent) == settings(plain)
    assert run_name(sent) == run_name(plain)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is not installed")
def test_tensorboard_reads_the_values_from_the_run_folder(loraga: Loraga, arguments: Arguments) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loraga("train", *arguments("llama", "method=lora", "trainer.report_to=[tensorboard]"))
    events = EventAccumulator(str(only_run() / "tensorboard"))
    events.Reload()
    read = {event.step: event.value for event in events.Scalars("train/loss")}
    expected = {point["step"]: point["loss"] for point in points(only_run()) if "loss" in point}
    assert read == pytest.approx(expected, rel=1e-6)
