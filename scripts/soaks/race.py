"""Lets processes ask for the same results at the same moment: one computes, and nothing that they write is lost."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

from lora_ga_cli.json_files import read_json
from lora_ga_cli.remembered_digests import remembered_sha256
from lora_ga_cli.stores import FolderStore
from soaks._figure import Figure, at_least, at_most


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=8, help="how many ask at once (8)")
    parser.add_argument("--rounds", type=int, default=100, help="how often (100)")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Starts the processes, and counts what they left."""
    home, processes, rounds = Path.cwd(), options.processes, options.rounds
    for number in range(processes * rounds):
        file = home / f"file-{number}"
        file.write_text(str(number), encoding="utf-8")
        os.utime(file, (1, 1))  # digests of files that have just changed are not remembered
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    workers = [
        context.Process(target=work, args=(str(home), index, processes, rounds, together)) for index in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    computed = [len(list((home / "computed").glob(f"{number}-*"))) for number in range(rounds)]
    remembered = {entry.partition("|")[0] for entry in read_json(home / "digests.json")}
    kept = sum(str((home / f"file-{number}").resolve()) in remembered for number in range(processes * rounds))
    yield Figure("results that several processes asked for at once", f"{rounds:,}")
    yield at_most("  computed more than once, or never", sum(count != 1 for count in computed))
    yield at_least("digests of files that were remembered", kept, processes * rounds)
    yield at_most("processes that failed", sum(worker.exitcode != 0 for worker in workers))


def work(home: str, index: int, processes: int, rounds: int, together: Barrier) -> None:
    """One process: in each round it asks for the result of the round, and for the digest of a file of its own."""
    folder = Path(home)
    (folder / "computed").mkdir(exist_ok=True)
    store, memo = FolderStore(folder / "results"), folder / "digests.json"
    for number in range(rounds):
        together.wait()
        with store.claimed(str(number), lambda text: None, ""):
            if not store.path(str(number)).is_dir():
                (folder / "computed" / f"{number}-{index}").touch()
                store.path(str(number)).mkdir()
        remembered_sha256(folder / f"file-{number * processes + index}", memo)
