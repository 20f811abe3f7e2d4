"""What Hydra's launchers leave to loraga: signals, the tasks of one job, and processes of joblib that stay."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from lora_ga_cli import interruption


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
