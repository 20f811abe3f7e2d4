"""Hydra's launcher for Slurm, with processes of this machine in the place of Slurm's (``submitit_local``)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_ga_cli import interruption, peers, reachable
from lora_ga_cli.cli.app import main
from lora_ga_cli.cli.jobs import _Jobs
from lora_ga_cli.cli.stopping import Given
from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.launchers import UNTIL_REQUEUED, Handlers, end_task, handlers_of_task, join_tasks
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import SweepError, TrainingError
from tests.helpers import Arguments, Loraga, only_run

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
JobEnvironment = pytest.importorskip("submitit").JobEnvironment
QUICKSTART = "recipe=quickstart"
LOCAL = "hydra/launcher=submitit_local"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def leaving_variables() -> Callable[[Config, str], None]:
    """A job that leaves its variables. (A function within a function is handed over by value: a job on another machine
    cannot import the tests.)"""
    names = VARIABLES

    def leave(config: Config, title: str) -> None:
        found = {name: os.environ.get(name) for name in names}
        file = Path(config.output_dir) / f"rank_{config.rank}_of_{found['RANK']}.json"
        file.write_text(json.dumps({"title": title, **found}), encoding="utf-8")

    return leave


def left() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in Path().glob("rank_*.json")}


def test_a_task_among_several_gets_torchs_variables_in_place_of_those_of_the_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_launcher = {"EXECUTOR": "local", "LOCAL_JOB_ID": "17", "LOCAL_NTASKS": "2", "LOCAL_JOB_NUM_NODES": "1"}
    of_task = {"LOCAL_GLOBALID": "1", "LOCAL_LOCALID": "1", "LOCAL_NODEID": "0"}
    for name, value in (of_launcher | of_task).items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    for name in (*VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "0,1")  # is restored at the end
    monkeypatch.delenv("MASTER_PORT")
    join_tasks()
    assert [os.environ[name] for name in VARIABLES[:5]] == ["1", "2", "1", "2", "127.0.0.1"]
    assert os.environ["MASTER_PORT"].isdecimal()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.slow
def test_the_tasks_of_a_job_know_each_other(tmp_path: Path) -> None:
    options = [QUICKSTART, "rank=3", f"output_dir={tmp_path}", LOCAL, "hydra.launcher.tasks_per_node=2", "-m"]
    launch(options, leaving_variables())
    first, second = left()["rank_3_of_0"], left()["rank_3_of_1"]
    assert [(task["WORLD_SIZE"], task["LOCAL_RANK"], task["LOCAL_WORLD_SIZE"]) for task in (first, second)] == [
        ("2", "0", "2"),
        ("2", "1", "2"),
    ]
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] == "127.0.0.1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert "RANK" not in os.environ


@pytest.mark.slow
def test_jobs_of_one_task_train_alone_and_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    leave = leaving_variables()

    def task(config: Config, title: str) -> None:
        if config.rank == 2:
            raise TrainingError("diverged")
        leave(config, title)

    with pytest.raises(SweepError, match="one or more jobs failed"):
        launch([QUICKSTART, "rank=2,3,4", f"output_dir={tmp_path}", LOCAL, "-m"], task)
    assert {name: task["title"] for name, task in left().items()} == {
        "rank_3_of_None": "2: rank=3",
        "rank_4_of_None": "3: rank=4",
    }


@pytest.mark.slow
def test_tasks_of_one_job_train_what_one_process_does(loraga: Loraga, arguments: Arguments) -> None:
    options = arguments("llama", "name=run", "method=lora", "trainer.max_steps=2")
    sweep = [*options, "output_dir=two", LOCAL, "hydra.launcher.tasks_per_node=2"]
    subprocess.run([sys.executable, "-m", "lora_ga_cli", "train", "-m", *sweep], check=True, timeout=120)
    loraga("train", *options, "output_dir=one")
    one, two = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4)


class OfLauncher:
    """What submitit does at a signal, here without beginning anything again."""

    def __init__(self) -> None:
        self.called: list[int] = []

    def __call__(self, number: int, frame: Any) -> None:
        self.called.append(number)
        sys.exit(-1)

    def bypass(self, number: int, frame: Any) -> None:
        raise AssertionError("the job goes on as if nothing had come")


@pytest.mark.parametrize(("number", "code", "begun_again"), [(signal.SIGUSR2, -1, True), (signal.SIGTERM, 143, False)])
def test_a_task_saves_its_work_before_the_launcher_begins_it_again_or_it_ends(
    number: int, code: int, begun_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"EXECUTOR": "local", "LOCAL_JOB_ID": "17", "LOCAL_GLOBALID": "0"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    launcher, events = OfLauncher(), list[str]()
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, *interruption.NAMES)}
    state = dict(vars(interruption._State))
    signal.signal(signal.SIGUSR2, launcher)
    signal.signal(signal.SIGTERM, launcher.bypass)
    try:
        handlers = handlers_of_task()
        interruption.in_worker(handlers)
        # the signal is remembered inside the block, and raised at its end
        with pytest.raises(interruption.Interruption) as stop, interruption.prompt(), interruption.deferred():  # noqa: PT012
            os.kill(os.getpid(), number)
            events.append("saved")
        assert (events, launcher.called) == (["saved"], [])
        with pytest.raises(SystemExit) as ended:
            end_task(stop.value, handlers)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for name, value in state.items():
            if not name.startswith("__"):
                setattr(interruption._State, name, value)
    assert ended.value.code == code
    assert launcher.called == [number] * begun_again


@pytest.mark.parametrize(("came", "waits"), [(signal.SIGUSR2, True), (None, True), (signal.SIGTERM, False)])
def test_another_task_of_slurm_ends_after_the_first_one_had_time_to_begin_the_job_again(
    came: int | None, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If only another task got the signal, this one cannot know which it was."""
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "17", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    waited, called = list[float](), list[int]()
    monkeypatch.setattr("lora_ga_cli.config.launchers.time.sleep", waited.append)
    monkeypatch.setattr(interruption._State, "requested", came)
    handlers: Handlers = {signal.SIGUSR2: lambda number, frame: called.append(number)}
    stop = interruption.Interruption(came or signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        end_task(stop, handlers)
    assert ended.value.code == 128 + stop.number
    assert (waited, called) == ([UNTIL_REQUEUED] * waits, [came] * (came == signal.SIGUSR2))


def test_a_signal_of_preemption_of_the_users_own_begins_a_job_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EXECUTOR": "local", "LOCAL_JOB_ID": "17", "LOCAL_GLOBALID": "0"}.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    monkeypatch.setattr(JobEnvironment, "USR_SIG", "TERM")
    launcher = OfLauncher()
    with pytest.raises(SystemExit):
        end_task(interruption.Interruption(signal.SIGTERM), {signal.SIGTERM: launcher})
    assert launcher.called == [signal.SIGTERM]


def test_a_task_that_a_signal_has_stopped_is_not_missed_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the others would say that it was killed, and end before the job is begun again."""
    told: list[bool] = []
    for module in (peers, reachable):
        monkeypatch.setattr(module, "report_to", lambda report: None)
    for name in ("arguments", "valued_flags"):
        monkeypatch.setattr(Given, name, getattr(Given, name))  # is restored at the end
    monkeypatch.setattr(peers, "ended", lambda *, by_signal: told.append(by_signal))
    jobs = _Jobs(lambda config: {}, None)
    monkeypatch.setattr(jobs, "_process", "the one that has submitted the job")
    monkeypatch.setattr(jobs, "_result", interrupted)
    with pytest.raises(interruption.Interruption):
        jobs.run(Config.model_construct(), "")
    assert told == [True]


def interrupted(config: Config) -> None:
    raise interruption.Interruption(signal.SIGUSR2, "stopped after step 2 of 6")


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_that_is_preempted_is_begun_again_by_the_launcher_and_goes_on(tasks: int, arguments: Arguments) -> None:
    """SIGUSR2 is what submitit has Slurm send. The result is that of a job that nothing has stopped."""
    options = arguments("llama", "name=run", "method=lora", "trainer.max_steps=150", "trainer.save_steps=150")
    options.append(f"hydra.launcher.tasks_per_node={tasks}")
    sweep = begin_sweep([*options, "output_dir=stopped"])
    for task in running_tasks(tasks):
        task.send_signal(signal.SIGUSR2)
    assert sweep.wait(180) == 0, printed_by_tasks("stopped")
    assert "SIGUSR2: stopped after step" in printed_by_tasks("stopped")
    assert "The other processes end too" not in printed_by_tasks("stopped")
    assert "If the launcher does not begin this job again, go on with: loraga train -m" in printed_by_tasks("stopped")
    assert "resuming after step" in printed_by_tasks("stopped")
    assert begin_sweep([*options, "output_dir=through"]).wait(180) == 0
    through, stopped = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("through", "stopped"))
    torch.testing.assert_close(stopped, through, rtol=0, atol=0)


@pytest.mark.slow
def test_a_job_that_is_cancelled_leaves_a_checkpoint(arguments: Arguments) -> None:
    options = arguments("llama", "name=run", "method=lora", "trainer.max_steps=150", "trainer.save_steps=150")
    sweep = begin_sweep([*options, "output_dir=stopped"])
    (task,) = running_tasks(1)
    task.send_signal(signal.SIGTERM)
    assert sweep.wait(60) == 1
    (checkpoint,) = Path("stopped/run/checkpoints").iterdir()
    assert (checkpoint / "complete.json").is_file()
    assert f"with the checkpoint stopped/run/checkpoints/{checkpoint.name}" in printed_by_tasks("stopped")


def begin_sweep(options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lora_ga_cli", "train", "-m", *options, LOCAL]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def running_tasks(count: int) -> list[psutil.Process]:
    """The tasks of the launcher, once they train."""
    for _ in range(600):
        time.sleep(0.1)
        metrics = Path("stopped/run/metrics.jsonl")
        if metrics.is_file() and metrics.stat().st_size:
            below = psutil.Process().children(recursive=True)
            tasks = [item for item in below if "submitit.core._submit" in item.cmdline()]
            assert len(tasks) == count
            return tasks
    raise AssertionError(printed_by_tasks("stopped"))


def printed_by_tasks(folder: str) -> str:
    """What all tasks of a sweep printed, on one line each."""
    files = sorted(Path(folder, ".sweeps").rglob("*_log.*"))
    return " ".join(" ".join(file.read_text(encoding="utf-8").split()) for file in files)


def test_the_documented_options_of_slurm_compose(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"partition": "gpu", "gpus_per_node": 4, "tasks_per_node": 4, "nodes": 2, "timeout_min": 600}
    options = [f"hydra.launcher.{name}={value}" for name, value in given.items()]
    launcher = ["hydra/launcher=submitit_slurm", *options, "hydra.launcher.max_num_timeout=3"]
    assert main(["train", QUICKSTART, *launcher, "--cfg", "hydra", "-p", "hydra.launcher"]) == 0
    printed = capsys.readouterr().out
    composed = yaml.safe_load(printed)
    composed = composed.get("hydra", composed)
    composed = composed.get("launcher", composed)
    assert {name: composed[name] for name in given} == given
    assert composed["max_num_timeout"] == 3


def test_a_machine_without_slurm_is_told_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", "-m", QUICKSTART, "seed=1,2", "hydra/launcher=submitit_slurm"]) != 0
    error = capsys.readouterr().err
    assert "submitit_slurm" in error
    assert "srun" in error
