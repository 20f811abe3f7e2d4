"""Measures what `loraga inspect --with-base` takes for one layer: time and peak memory of the process.

    python scripts/bench_inspect.py                          a layer of Llama-2-7B, 4096 × 11008, ranks 16 and 64
    python scripts/bench_inspect.py --shape 512 1024         a small one

The weight has random entries, so that its singular values have no gaps: the iteration for the leading vectors of
``W + ΔW`` takes more steps than with a trained weight. ΔW has a few percent of the weight's norm. Each rank runs in a
process of its own. The first column is the decomposition of ΔW with all measures that need no base; the second one has
everything else. Seconds of CPU time are of all threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Sequence

import torch

from lora_ga_cli.inspection.changes import Decomposed, decompose
from lora_ga_cli.inspection.layer import against_weight, measured
from lora_ga_cli.lora.links import LowRank

SHARE = 0.05
"""‖ΔW‖ / ‖W‖, about."""


def measure(shape: Sequence[int], rank: int, threads: int) -> None:
    """Prints one line of the table."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    d_out, d_in = shape
    weight = 0.02 * torch.randn(d_out, d_in, generator=draw)
    size = 0.02 * SHARE / rank**0.5
    change = LowRank(size * torch.randn(d_out, rank, generator=draw), torch.randn(rank, d_in, generator=draw))

    def alone() -> Decomposed:
        found = decompose(change)
        measured(found, None, None)
        return found

    began, cpu = time.perf_counter(), time.process_time()
    found = alone()
    without = time.perf_counter() - began
    against_weight(found, weight.double())
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {rank} | {without:.1f} s | {seconds:.0f} s | {cpu:.0f} s | {peak:.2f} GiB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 11008), metavar=("D_OUT", "D_IN"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print("| rank | without the base | with it | CPU time | peak memory |\n|---|---|---|---|---|", flush=True)
    for rank in options.ranks:
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(options.shape, rank, options.threads)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
