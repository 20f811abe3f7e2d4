"""Two machines train one run: two agents of torchrun with one process each, which find each other by a rendezvous."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ga_cli import distributed
from lora_ga_cli.errors import RunError
from lora_ga_cli.stages import together
from lora_ga_cli.training.run_folder import RunFolder
from tests.helpers import Arguments, Loraga, configured, only_run


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def agents(*commands: list[str]) -> list[tuple[int, str]]:
    """Runs each command line under an agent of its own; returns their exit codes and what they printed."""
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(commands)}", "--nproc-per-node=1"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test"]
    started = [
        subprocess.Popen(
            [*launch, *meeting, "-m", "lora_ga_cli", *command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    printed = [agent.communicate(timeout=120)[0] for agent in started]
    return [(agent.returncode, text) for agent, text in zip(started, printed, strict=True)]


@pytest.mark.slow
def test_two_machines_train_what_one_does(loraga: Loraga, arguments: Arguments) -> None:
    options = arguments("llama", "name=run", "method=lora", "trainer.max_steps=2")
    command = ["train", *options, "output_dir=two"]
    assert [code for code, _ in agents(command, command)] == [0, 0]
    loraga("train", *options, "output_dir=one")
    one, two = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4)
    assert not list(only_run("two").glob(".together*"))


@pytest.mark.slow
def test_machines_with_a_folder_each_are_refused(arguments: Arguments) -> None:
    options = arguments("llama", "name=run", "method=lora", "trainer.max_steps=2")
    ended = agents(*(["train", *options, f"output_dir={folder}"] for folder in ("here", "there")))
    assert all(code != 0 for code, _ in ended)
    assert any("does not see what process 0 writes" in text for _, text in ended)


class TestSecondProcess:
    """What process 1 of two finds, with the messages of process 0 in the place of a network."""

    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunFolder:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setattr(together, "PATIENCE", 0.0)
        monkeypatch.setattr(distributed, "wait", lambda: None)
        monkeypatch.setattr(distributed, "gathered", lambda value: ["", value])
        monkeypatch.setattr(distributed, "broadcast_from_main", lambda value: (".together-1", *value[1:]))
        return RunFolder(tmp_path)

    def test_it_sees_what_the_main_process_left(self, run: RunFolder) -> None:
        (run.path / ".together-1").touch()
        together.check_together(configured("lora"), run)

    def test_a_folder_of_its_own_is_refused(self, run: RunFolder) -> None:
        with pytest.raises(RunError, match="process 1 does not see what process 0 writes in"):
            together.check_together(configured("lora"), run)

    @pytest.mark.parametrize(("position", "what"), [(1, "has loraga"), (2, "has other options")])
    def test_another_command_is_refused(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, position: int, what: str
    ) -> None:
        def of_main(value: tuple[str, str, str]) -> tuple[str, ...]:
            return tuple("other" if index == position else item for index, item in enumerate(value))

        monkeypatch.setattr(distributed, "broadcast_from_main", of_main)
        with pytest.raises(RunError, match=f"process 1 {what}"):
            together.check_together(configured("lora"), run)
