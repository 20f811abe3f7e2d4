"""What a training costs: the parameters it trains, the state of its optimizer, its peak of memory, the time of a step.

Every checkpoint writes the costs so far into a file of the run (or of the link), so that a run that was stopped and
resumed knows those of its earlier sessions.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.json_files import read_json, write_json
from lora_ga_cli.report.console import warn
from lora_ga_cli.training.manifest import type_problem

MIN_STEPS = 3
"""The median time of fewer steps says nothing: the first steps warm the device up."""
MAX_STEPS = 1000
"""How many times of steps are kept, the last ones."""


@dataclass(frozen=True)
class Cost:
    """The cost of a training, or of one link of it.

    Args:
        trained_parameters: before the first step; a method may remove some of them later.
        optimizer_state_bytes: after the last step; None if no step was done yet.
        peak_memory_bytes: the largest amount of memory in PyTorch's tensors on a CUDA device since the session began,
            initialization included; None on other devices, which do not count it.
        step_seconds: the time of each of the last steps, without evaluations and checkpoints.
    """

    trained_parameters: int
    optimizer_state_bytes: int | None = None
    peak_memory_bytes: int | None = None
    step_seconds: Sequence[float] = ()

    @property
    def entries(self) -> dict[str, int | float | None]:
        """What the manifest of a run says; ``seconds_per_step`` is the median, and None for fewer than 3 steps."""
        known = len(self.step_seconds) >= MIN_STEPS
        return {
            "trained_parameters": self.trained_parameters,
            "optimizer_state_bytes": self.optimizer_state_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "seconds_per_step": float(f"{statistics.median(self.step_seconds):.4g}") if known else None,
        }


_COST = TypeAdapter(Cost)
COST_NAMES = tuple(Cost(0).entries)
"""The names of the costs in a manifest."""


def combined(costs: Sequence[Cost]) -> Cost:
    """The cost of a run of several links, of which one is in memory at a time: the largest of each, and all steps."""
    return Cost(
        trained_parameters=max(cost.trained_parameters for cost in costs),
        optimizer_state_bytes=_largest(cost.optimizer_state_bytes for cost in costs),
        peak_memory_bytes=_largest(cost.peak_memory_bytes for cost in costs),
        step_seconds=[seconds for cost in costs for seconds in cost.step_seconds],
    )


def read_cost(file: Path, notify: Callable[[str], object] | None = None) -> Cost | None:
    """The cost that a file holds; None if there is no file, or if it is damaged.

    Args:
        notify: is told of the damage; by default it is a warning.
    """
    try:
        return _COST.validate_json(json.dumps(read_json(file)), strict=True) if file.exists() else None
    except DamagedFile as error:
        what = error.what
    except ValidationError as error:
        what = f"is damaged ({type_problem(error)})"
    (notify or warn)(f"{file} {what}; the cost of what was trained before is not known any more")
    return None


def optimizer_state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors that an optimizer keeps between steps; a tensor that several parameters share counts once.

    Args:
        optimizer: of torch, or accelerate's around it.
    """
    sizes = {}
    for tensor in _tensors(optimizer.state):
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = (local.device, local.untyped_storage().data_ptr(), local.storage_offset())
        sizes[place if local.numel() else id(local)] = local.numel() * local.element_size()
    return sum(sizes.values())


def begin_peak(device: torch.device) -> None:
    """Counts the peak of memory from here. What an earlier run in this process has left is freed first."""
    if device.type == "cuda":
        clear_device_cache(garbage_collection=True)
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes(device: torch.device) -> int | None:
    """The peak since `begin_peak`; None on devices that do not count it."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


class CostMeter(TrainerCallback):
    """Measures the cost of a training, on top of what its earlier sessions wrote.

    A step is timed from the end of the one before, or of the evaluation, checkpoint or line of the log between the two:
    reading the batch is part of it. A device may still be working when a step ends, and is waited for in the next one,
    so that the median is right where single times are not.

    Args:
        file: where the cost is written, with every checkpoint and at the end.
        parameters: how many parameters train.
        device: the device of the training.
    """

    def __init__(self, file: Path, parameters: int, device: torch.device):
        self.file, self.parameters, self.device = file, parameters, device
        self.earlier = read_cost(file) or Cost(parameters)
        self._seconds = deque(self.earlier.step_seconds, maxlen=MAX_STEPS)
        self._began = 0.0

    def cost(self, optimizer: Any) -> Cost:
        """The cost so far.

        Args:
            optimizer: None if this session made no step, because an earlier one ended with the last.
        """
        return Cost(
            trained_parameters=self.parameters,
            optimizer_state_bytes=self.earlier.optimizer_state_bytes
            if optimizer is None
            else optimizer_state_bytes(optimizer),
            peak_memory_bytes=_largest([self.earlier.peak_memory_bytes, peak_memory_bytes(self.device)]),
            step_seconds=list(self._seconds),
        )

    def write(self, optimizer: Any) -> None:
        """Stores the cost so far. The caller is the main process."""
        write_json(self.file, asdict(self.cost(optimizer)), digest=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._restart()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seconds.append(float(f"{time.perf_counter() - self._began:.4g}"))
        self._restart()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._restart()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._restart()

    def on_save(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            self.write(optimizer)
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()


def _largest(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
