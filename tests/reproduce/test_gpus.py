"""Processes are spread over GPUs, and each keeps its own."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from multiprocessing.synchronize import Barrier
from pathlib import Path

from lora_ga_cli.reproduce.gpus import claim_gpu

PROCESSES = multiprocessing.get_context("fork")


def claim(folder: Path, all_claimed: Barrier, claims: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    first = claim_gpu(["4", "6"], folder)
    all_claimed.wait(60)
    claims.put((first, claim_gpu(["4", "6"], folder)))


def claimed_by(count: int, folder: Path) -> list[tuple[str, str]]:
    """What so many processes at once get when they ask twice."""
    all_claimed, claims = PROCESSES.Barrier(count), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=claim, args=(folder, all_claimed, claims)) for _ in range(count)]
    for process in processes:
        process.start()
    found = [claims.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    return found


def test_processes_spread_evenly_and_keep_their_gpu(tmp_path: Path) -> None:
    found = claimed_by(5, tmp_path)
    assert Counter(first for first, _ in found) == {"4": 3, "6": 2}
    assert all(first == second for first, second in found)


def test_a_process_that_ended_has_freed_its_place(tmp_path: Path) -> None:
    assert [first for first, _ in claimed_by(1, tmp_path)] == ["4"]
    assert sorted(first for first, _ in claimed_by(2, tmp_path)) == ["4", "6"]
