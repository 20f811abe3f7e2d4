"""What Hydra's launchers leave to loraga: signals, the tasks of one job, and processes of joblib that stay."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from lora_ga_cli import interruption

Handlers = Mapping[int, Callable[[int, Any], Any]]
"""What a launcher does at a signal, by the signal's number."""
UNTIL_REQUEUED = 60.0
"""Seconds in which Slurm has ended the tasks of a job that it begins again."""


def when_stopped(launcher: str) -> contextlib.AbstractContextManager[None]:
    """What a signal does to the jobs of a launcher."""
    if not launcher:
        return contextlib.nullcontext()
    if launcher.startswith("submitit"):
        end = ", and scancel ends them" if launcher == "submitit_slurm" else ""
        kept = f"the jobs that were submitted go on; loraga watch OUTPUT_DIR/* shows how far they are{end}"
        return interruption.keeping(kept, "When they have ended, this does what is left")
    return interruption.with_workers()


def launcher_of(arguments: Sequence[str]) -> str:
    """The name of the launcher that the command line chooses; empty if it chooses none."""
    return next((item.partition("=")[2] for item in reversed(arguments) if item.startswith("hydra/launcher=")), "")


def several_on_one_gpu(arguments: Sequence[str], gpus: Sequence[str]) -> bool:
    """Whether several of joblib's processes are on one GPU."""
    given = [item.partition("=")[2] for item in arguments if item.lstrip("+").startswith("hydra.launcher.n_jobs=")]
    processes = given[-1] if given else ""
    return bool(gpus) and not (processes.isdecimal() and 0 < int(processes) <= len(gpus))


@contextlib.contextmanager
def ending_joblib() -> Iterator[None]:
    """Ends joblib's processes after the ``with`` block, where joblib would keep them for later.

    Of several that wait on one GPU, more than one could get a later job while another GPU has none.
    """
    try:
        yield
    finally:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)


def join_tasks() -> None:
    """Has the tasks of one job of submitit train together, if there are several.

    The launcher starts every task with the same job, and with variables of its own in place of torch's.
    """
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks > 1:
        # every task sees the GPUs of its node, and takes the one of LOCAL_RANK
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # where a machine does not know its own name


def handlers_of_task() -> Handlers:
    """What submitit does in a task at the signals that ask it to stop.

    At the signal of a time limit or of a preemption (SIGUSR2, unless SUBMITIT_PREEMPT_SIGNAL names another one) the
    first task has the job begun again, and ends. SIGTERM is ignored.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, _signal_of_requeue())}
    return {number: handler for number, handler in handlers.items() if callable(handler)}


def _signal_of_requeue() -> int:
    """The signal at which submitit has a job begun again."""
    from submitit import JobEnvironment

    return int(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))


def end_task(stop: interruption.Interruption, handlers: Handlers) -> NoReturn:
    """Ends a task of submitit that a signal has stopped, when its work is saved.

    Slurm sends SIGTERM when a job is cancelled, at the end of its time, and at a preemption for which no other signal
    is set.

    Args:
        stop: what stopped it.
        handlers: as `handlers_of_task`.

    Raises:
        SystemExit: always, with 128 more than the number of the signal, or as submitit ends a task.
    """
    from submitit import JobEnvironment

    number = interruption.requested() or stop.number
    is_begun_again = number == _signal_of_requeue()
    if is_begun_again and number in handlers:
        handlers[number](number, None)  # which ends the first task
    is_unknown = interruption.requested() is None  # the signal came to another task
    is_first = JobEnvironment().global_rank == 0
    if not is_first and (is_begun_again or is_unknown) and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        time.sleep(UNTIL_REQUEUED)  # where Slurm ends a job whose task fails, the first task could not begin it again
    sys.exit(128 + number)
