"""A program for torchrun: ``loraga`` with an accident in the second step of process 1.

Its first argument is the accident, and the others are those of ``loraga``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from lora_ga_cli import distributed
from lora_ga_cli.cli.app import run
from lora_ga_cli.training.trainer import LoragaTrainer


def _memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _exception() -> None:
    raise ValueError("a fault of a library")


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ACCIDENTS = {"memory": _memory, "exception": _exception, "killed": _killed}

if __name__ == "__main__":
    accident = ACCIDENTS[sys.argv.pop(1)]
    calls, working = 0, LoragaTrainer.training_step

    def training_step(self: LoragaTrainer, *arguments: Any, **options: Any) -> torch.Tensor:
        global calls
        calls += 1
        if calls == 2 and distributed.index() == 1:
            accident()
        return working(self, *arguments, **options)

    LoragaTrainer.training_step = training_step  # type: ignore[method-assign]
    run()
