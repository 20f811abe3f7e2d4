"""Hydra's launcher for Slurm, with processes of this machine in the place of Slurm's (``submitit_local``)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lora_ga_cli.cli.app import main
from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.launchers import join_tasks
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import SweepError, TrainingError
from tests.helpers import Arguments, Loraga, only_run

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
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
