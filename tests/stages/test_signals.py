"""SIGTERM, SIGHUP and Ctrl-C: a checkpoint is written, and the printed command ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from lora_ga_cli import interruption
from lora_ga_cli.training.batches import MicroBatch
from lora_ga_cli.training.shared_signal import SharedSignal
from lora_ga_cli.training.trainer import LoragaTrainer
from tests.helpers import Arguments, Loraga, only_run, timeless_points

ON_LINES = ("trainer.logging_steps=3", "trainer.save_steps=4", "trainer.eval_steps=2")
"""What is logged, saved and evaluated at different steps."""
BY_EPOCH = ("trainer.save_steps=null", "trainer.eval_steps=null", "trainer.max_steps=null", "trainer.epochs=2")
BEST = ("trainer.load_best=true", "trainer.save_steps=2")
SHORT_EPOCHS = ("dataset.max_rows=24", "dataset.validation_fraction=0.1", "trainer.logging_steps=2")


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Every signal has its usual effect, also where the tests run in the background or under nohup."""
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def sent(calls: int, function: Callable, number: int = signal.SIGTERM) -> Callable:  # type: ignore[type-arg]
    """``function``, before whose n-th call this process gets a signal."""
    count = 0

    def sending(*arguments: object, **options: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return sending


def stop(
    monkeypatch: pytest.MonkeyPatch, loraga: Loraga, command: list[str], point: str, calls: int, code: int = 143
) -> str:
    """Runs a command that gets a signal before the n-th call of a method of the Trainer."""
    with monkeypatch.context() as patch:
        number = code - 128
        patch.setattr(LoragaTrainer, point, sent(calls, getattr(LoragaTrainer, point), number))
        return loraga("train", *command, code=code)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[tuple[str, ...], tuple[list[dict[str, float]], dict[str, torch.Tensor]]]:
    """The results to compare with, by options, each made once."""
    return {}


@pytest.mark.parametrize(
    ("options", "point", "calls", "done"),
    [
        (ON_LINES, "training_step", 3, 3),  # a step that is not logged, saved or evaluated
        (ON_LINES, "training_step", 2, 2),  # one that is evaluated
        (ON_LINES, "evaluate", 2, 4),  # in an evaluation, before the checkpoint of the same step
        (ON_LINES, "training_step", 6, 6),  # the last step
        ((*SHORT_EPOCHS, *BY_EPOCH), "training_step", 3, 3),  # the last step of an epoch
        ((*SHORT_EPOCHS, *BY_EPOCH), "evaluate", 1, 3),
        ((*ON_LINES, *BEST), "evaluate", 3, 6),  # the best checkpoint is chosen by it
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    options: tuple[str, ...],
    point: str,
    calls: int,
    done: int,
    loraga: Loraga,
    arguments: Arguments,
    uninterrupted: dict[tuple[str, ...], tuple[list[dict[str, float]], dict[str, torch.Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = arguments("llama", "method=lora", *options)
    if options not in uninterrupted:
        loraga("train", *command, "output_dir=uninterrupted")
        run = only_run("uninterrupted")
        uninterrupted[options] = timeless_points(run), load_file(run / "adapter_model.safetensors")
    printed = stop(monkeypatch, loraga, command, point, calls)
    assert f"stopped after step {done} of 6, with the checkpoint" in printed
    assert (only_run() / "checkpoints" / f"checkpoint-{done}" / "complete.json").exists()
    again = loraga("train", *command)
    assert "train  finished in" in again
    expected, weights = uninterrupted[options]
    assert timeless_points(only_run()) == expected
    for name, tensor in load_file(only_run() / "adapter_model.safetensors").items():
        assert torch.equal(tensor, weights[name])


@pytest.mark.parametrize(("number", "said"), [(1, "SIGHUP"), (2, "Ctrl-C"), (15, "SIGTERM")])
def test_the_exit_code_is_that_of_shells_and_the_printed_command_goes_on(
    number: int, said: str, loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = arguments("llama", "method=lora", "trainer.eval_steps=6", "name=my run", "overwrite=true")
    printed = stop(monkeypatch, loraga, command, "training_step", 2, code=128 + number)
    assert printed.count("stopped  ") == 1
    assert f"stopped  {said}: stopped after step 2 of 6" in printed
    line = printed.partition("To go on: loraga ")[2]
    assert "overwrite" not in line  # it would begin the run again
    assert "'name=my run'" in line
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # of the program that called


def test_before_the_first_step_no_checkpoint_is_promised(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.stages import train

    with monkeypatch.context() as patch:
        patch.setattr(train, "initialize_link", sent(1, train.initialize_link))
        printed = loraga("train", *arguments("llama"), code=143)
    assert "SIGTERM: no result was complete, so none is kept" in printed
    assert "To start from the beginning: loraga train" in printed
    with monkeypatch.context() as patch:
        patch.setattr(train, "fit", sent(1, train.fit))
        printed = loraga("train", *arguments("llama"), code=143)
    assert "no step of training is kept, but the initialization in runs/" in printed


def test_after_the_last_step_the_checkpoint_is_named(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.stages import train

    with monkeypatch.context() as patch:
        patch.setattr(train, "check_saved", sent(1, train.check_saved))
        printed = loraga("train", *arguments("llama", "method=lora"), code=143)
    assert re.search(r"SIGTERM: 6 of 6 steps are kept in the checkpoint \S+checkpoint-6\. To go on", printed)
    assert "finished in" in loraga("train", *arguments("llama", "method=lora"))


def test_a_chain_stops_inside_a_link_and_between_two(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of a link is followed by its result, which is kept in the place of a checkpoint."""
    chain = arguments("llama", "method=rac_lora", "method.link_steps=3", "trainer.save_steps=4")
    loraga("train", *chain, "output_dir=uninterrupted")
    assert "stopped after step 2 of 6" in stop(monkeypatch, loraga, chain, "training_step", 2)
    assert "3 of 6 steps are kept in" in stop(monkeypatch, loraga, chain, "training_step", 1)
    assert "stopped after step 5 of 6" in stop(monkeypatch, loraga, chain, "training_step", 2)
    loraga("train", *chain)
    expected = load_file(only_run("uninterrupted") / "adapter_model.safetensors")
    for name, tensor in load_file(only_run() / "adapter_model.safetensors").items():
        assert torch.equal(tensor, expected[name])


def test_a_sweep_saves_its_job_and_starts_no_other(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = stop(monkeypatch, loraga, arguments("llama", "method=lora", "seed=1,2,3", "-m"), "training_step", 2)
    assert printed.count("━━ ") == 1
    assert "with the checkpoint" in printed
    assert "jobs after this one were not started. To go on: loraga train" in printed


def test_an_estimation_stops_and_stores_nothing(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_ga_cli.gradient.estimators.sketch import SketchEstimator

    with monkeypatch.context() as patch:
        patch.setattr(SketchEstimator, "end_micro_batch", sent(2, SketchEstimator.end_micro_batch))
        printed = loraga("estimate-grad", *arguments("llama"), code=143)
    assert "SIGTERM: no result was complete" in printed
    assert not [item for item in Path("cache/gradients").iterdir() if item.is_dir()]
    assert "estimated" in loraga("estimate-grad", *arguments("llama"))


@contextlib.contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the methods by which tensors were read, for each of which the process waits for the device."""
    reads: list[str] = []

    def reading(name: str) -> Callable[[torch.Tensor], object]:
        read = getattr(torch.Tensor, name)

        def counting(tensor: torch.Tensor) -> object:
            reads.append(name)
            return read(tensor)

        return counting

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, reading(name))
        yield reads


@pytest.mark.parametrize("processes", [1, 2])
def test_asking_for_a_signal_waits_for_no_device_and_for_no_other_process(
    processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step reads one tensor and has one sum over the processes, as it had before."""
    sums: list[torch.Size] = []

    def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        sums.append(tensor.shape)
        return tensor * processes

    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(world_size=processes, fp16=False),
        accelerator=SimpleNamespace(reduce=reduce),
        state=SimpleNamespace(global_step=0),
        _ahead=None,
        _signal=SharedSignal(processes),
        _trained=[],
    )
    batch = MicroBatch({}, items=7, tokens=9)
    for signals in (None, signal.SIGTERM):
        monkeypatch.setattr(interruption._State, "requested", signals)
        sums.clear()
        with counted_reads(monkeypatch) as reads:
            _, items = LoragaTrainer.get_batch_samples(trainer, iter([[batch]]), 1, torch.device("cpu"))
            LoragaTrainer._check_finite(trainer, torch.ones(()))
        assert reads == ["tolist"]
        assert len(sums) == (processes > 1)
        assert int(items) == 7 * processes
        assert trainer._signal.agreed == (processes > 1 and signals is not None)


def started(command: list[str], *, module: str = "lora_ga_cli") -> subprocess.Popen[str]:
    """A command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *module.split(), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a process prints until a text comes."""
    assert process.stdout is not None
    printed = ""
    while text not in printed:
        line = process.stdout.readline()
        assert line, printed
        printed += line
    return printed


def signalled(process: subprocess.Popen[str], line: str, number: int) -> str:
    """What a process prints in total that gets a signal when it has printed a line."""
    printed = read_until(process, line)
    process.send_signal(number)
    return printed + process.communicate(timeout=60)[0]


LONG = ("method=lora", "trainer.max_steps=2000", "trainer.eval_steps=2000", "trainer.save_steps=2000")


@pytest.mark.slow
def test_processes_that_train_together_stop_after_the_same_step(arguments: Arguments) -> None:
    launch = "torch.distributed.run --standalone --nproc-per-node=2 -m lora_ga_cli"
    command = ["train", *arguments("llama", *LONG)]
    printed = signalled(started(command, module=launch), "step 3/2000", signal.SIGTERM)
    (found,) = set(re.findall(r"stopped after step (\d+) of 2000", printed))
    assert "To go on: torchrun --nproc-per-node 2 -m lora_ga_cli train" in printed
    printed = signalled(started(command, module=launch), "resuming after step", signal.SIGINT)
    assert f"resuming after step {found}" in printed


@pytest.mark.slow
def test_jobs_in_other_processes_are_saved_and_others_not_started(arguments: Arguments) -> None:
    jobs = ["seed=1,2,3,4", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = started(["train", *arguments("llama", *LONG, *jobs)])
    printed = signalled(process, "step 30/2000", signal.SIGTERM)
    assert process.returncode == 143
    assert printed.count("with the checkpoint") == 2
    assert "every job that ran has saved its work" in printed
    assert len([run for run in Path("runs").iterdir() if (run / "manifest.json").exists()]) == 2


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_nohup_is_obeyed(arguments: Arguments) -> None:
    process = started(["train", *arguments("llama", *LONG, "trainer.batch_size=64", "trainer.micro_batch_size=1")])
    read_until(process, "step 1/2000")
    process.send_signal(signal.SIGINT)
    read_until(process, "Ctrl-C again stops at once")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=2) == -signal.SIGINT

    nohup = f"{sys.executable} -m lora_ga_cli train {shlex.join(arguments('llama', 'method=lora'))}"
    ignoring = subprocess.Popen(["nohup", "sh", "-c", nohup], stdout=subprocess.PIPE, text=True)
    read_until(ignoring, "step 1/6")
    for child in psutil.Process(ignoring.pid).children():
        child.send_signal(signal.SIGHUP)
    ignoring.send_signal(signal.SIGHUP)
    assert "finished in" in ignoring.communicate(timeout=60)[0]


@pytest.mark.slow
def test_workers_that_read_rows_do_not_end_before_the_checkpoint(arguments: Arguments) -> None:
    """A terminal sends Ctrl-C, and a scheduler SIGTERM, to all processes of a command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [sys.executable, "-m", "lora_ga_cli", "train", *arguments("llama", *LONG, "trainer.dataloader_workers=2")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        read_until(process, "tok/s")
        os.killpg(process.pid, number)
        assert "with the checkpoint" in process.communicate(timeout=60)[0]
        assert process.returncode == 128 + number
