"""What a training costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerControl, TrainerState, TrainingArguments

from lora_ga_cli.training.cost import Cost, CostMeter, combined, optimizer_state_bytes, peak_memory_bytes, read_cost

CPU = torch.device("cpu")


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_adamw_keeps_two_moments_and_a_counter_for_each_parameter() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(5, 3)), torch.nn.Parameter(torch.zeros(7, dtype=torch.bfloat16))]
    optimizer = torch.optim.AdamW(parameters)
    assert optimizer_state_bytes(optimizer) == 0
    stepped(optimizer)
    assert optimizer_state_bytes(optimizer) == 2 * (15 * 4 + 7 * 2) + 2 * 4
    assert optimizer_state_bytes(Accelerator(cpu=True).prepare_optimizer(optimizer)) == 2 * (15 * 4 + 7 * 2) + 2 * 4


def test_a_tensor_in_several_states_counts_once_and_nested_ones_count() -> None:
    shared, other = torch.zeros(10), torch.zeros(4, dtype=torch.float64)
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters)
    optimizer.state[parameters[0]] = {"map": shared, "basis": [other, {"of": None}]}
    optimizer.state[parameters[1]] = {"map": shared, "step": 3}
    assert optimizer_state_bytes(optimizer) == 40 + 32


def test_links_cost_the_largest_of_each_and_the_median_of_all_steps() -> None:
    one = Cost(10, 80, None, [3.0, 1.0])
    other = Cost(12, 60, 500, [2.0])
    assert combined([one, other]).entries == {
        "trained_parameters": 12,
        "optimizer_state_bytes": 80,
        "peak_memory_bytes": 500,
        "seconds_per_step": 2.0,
    }


def test_the_median_of_fewer_than_three_steps_is_not_given() -> None:
    assert Cost(1, step_seconds=[1.0, 2.0]).entries["seconds_per_step"] is None
    assert Cost(1, step_seconds=[1.0, 2.0, 9.0]).entries["seconds_per_step"] == 2.0


def test_a_cpu_does_not_count_its_peak() -> None:
    assert peak_memory_bytes(CPU) is None


@pytest.fixture
def meter(tmp_path: Path) -> Callable[[], CostMeter]:
    """Makes the meter of a session; all sessions have one file."""
    return lambda: CostMeter(tmp_path / "cost.json", 4, CPU)


def test_a_step_is_timed_without_evaluation_and_checkpoint(
    meter: Callable[[], CostMeter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock: steps take 1, 2 and 4 seconds; what happens between them takes 100."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    session, optimizer = meter(), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    event = (TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl())
    session.on_train_begin(*event)
    for seconds, between in ((1, session.on_evaluate), (2, session.on_save), (4, session.on_log)):
        clock[0] += seconds
        session.on_step_end(*event)
        clock[0] += 100
        between(*event, optimizer=optimizer)
    assert session.cost(None).step_seconds == [1, 2, 4]


def test_a_resumed_session_knows_what_the_earlier_ones_cost(
    meter: Callable[[], CostMeter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it makes no step, because the earlier one was stopped after the last checkpoint."""
    optimizer = stepped(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(4))]))
    event = (TrainingArguments(str(tmp_path)), TrainerState(), TrainerControl())
    first = meter()
    first.on_train_begin(*event)
    first.on_step_end(*event)
    monkeypatch.setattr("lora_ga_cli.training.cost.peak_memory_bytes", lambda _: 700)
    first.on_save(*event, optimizer=optimizer)
    monkeypatch.setattr("lora_ga_cli.training.cost.peak_memory_bytes", lambda _: 600)
    second = meter()
    second.write(None)
    found = read_cost(tmp_path / "cost.json")
    assert found is not None
    assert (found.trained_parameters, found.optimizer_state_bytes, found.peak_memory_bytes) == (4, 36, 700)
    assert len(found.step_seconds) == 1
