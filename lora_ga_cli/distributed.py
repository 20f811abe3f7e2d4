"""Several processes that train one run together, as torchrun and accelerate launch start them.

Every process computes the same values, except for the rows that it trains on and estimates from. The main process alone
writes files and prints. Where there is only one process, nothing here connects or waits, and what is
combined over processes is what that one gave.

Importing this module costs nothing: the command line imports it before it knows whether torch is needed.
"""

from __future__ import annotations

import os
import sys
import uuid
from typing import TYPE_CHECKING, TypeVar

from lora_ga_cli import peers
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.peers import count as count
from lora_ga_cli.peers import index as index

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
_STARTED = uuid.uuid4().hex


def this_process() -> tuple[str, int]:
    """Tells this process from every other one, also from those of other machines and from forks of this one."""
    return _STARTED, os.getpid()


def is_main() -> bool:
    """Whether this is the process that writes: number 0, or the only one."""
    return index() == 0


def check_tasks() -> None:
    """Refuses copies of one command that Slurm started as tasks of a step, and that know nothing of each other.

    Slurm sets ``SLURM_STEP_NUM_TASKS`` for what srun starts, also through submitit, and not for a batch script.

    Raises:
        InvalidInput: there are several tasks, and nothing such as torchrun has set ``RANK``.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks in ("", "1") or "RANK" in os.environ:
        return
    raise InvalidInput(
        [
            Fault(
                "Slurm",
                f"it started {tasks} tasks of this command, and each would do the same and write the same files",
                "set ntasks=1 (hydra.launcher.tasks_per_node=1 for submitit), or start torchrun with one task on each "
                "node; parts of a sweep take --shard",
            )
        ]
    )


def join(cpu: bool) -> None:
    """Connects the processes and gives each its device. A single process is left as it is."""
    if count() > 1:
        from accelerate.state import PartialState

        peers.watch()
        PartialState(cpu=cpu)


def leave() -> None:
    """Ends what `join` began, in every process that ended without an error."""
    if count() > 1 and "torch" in sys.modules:
        peers.ended()
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def wait() -> None:
    """Waits until every process has reached this line."""
    if count() > 1:
        from accelerate.state import PartialState

        PartialState().wait_for_everyone()


def broadcast_flag(value: bool) -> bool:
    """The value that the main process holds. Every process must call this function."""
    return broadcast_from_main(value)


def broadcast_from_main(value: T) -> T:
    """The value that the main process holds, of any type that pickle can write. Every process must call this."""
    if count() == 1:
        return value
    from accelerate.utils.operations import broadcast_object_list

    message = [value]
    broadcast_object_list(message)
    return message[0]


def gathered(value: T) -> list[T]:
    """The value of every process, in their order. Every process must call this."""
    if count() == 1:
        return [value]
    from accelerate.utils.operations import gather_object

    return list(gather_object([value]))


def connected() -> int:
    """The number of processes in torch's process group; 1 where there is none.

    Unlike `count` this does not read the environment, so a program that calls `estimate_gradients` without a process
    group estimates alone.
    """
    from torch import distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_tensor(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all connected processes, in place."""
    if connected() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def tensor_of(tensor: Tensor, source: int) -> Tensor:
    """The tensor that process ``source`` holds; every process gives one of the same shape and type."""
    if connected() == 1:
        return tensor
    import torch
    from torch import distributed

    received = tensor.contiguous() if source == distributed.get_rank() else torch.empty_like(tensor)
    distributed.broadcast(received, source)
    return received


def sum_number(value: float, device: torch.device) -> float:
    """The sum of a number over all connected processes."""
    if connected() == 1:
        return value
    import torch

    dtype = torch.float32 if device.type == "mps" else torch.float64
    return float(sum_tensor(torch.tensor(value, dtype=dtype, device=device)))


def max_number(value: int, device: torch.device) -> int:
    """The largest value of a number over all connected processes."""
    if connected() == 1:
        return value
    import torch
    from torch import distributed

    tensor = torch.tensor(value, device=device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return int(tensor)
