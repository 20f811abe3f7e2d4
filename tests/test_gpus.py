"""Processes are spread over GPUs, and each keeps its own."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from lora_ga_cli.gpus import claim_gpu, visible_gpus

PROCESSES = multiprocessing.get_context("fork")


def claim(gpus: Sequence[str], folder: Path, claims: multiprocessing.Queue, end: Event) -> None:  # type: ignore[type-arg]
    first = claim_gpu(gpus, folder)
    claims.put((first, claim_gpu(gpus, folder)))
    end.wait(60)


@contextlib.contextmanager
def claiming(count: int, folder: Path, gpus: Sequence[str] = ("4", "6")) -> Iterator[list[tuple[str, str]]]:
    """What so many processes, which live as long as the ``with`` block, get when they ask twice."""
    end, claims = PROCESSES.Event(), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=claim, args=(gpus, folder, claims, end)) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield [claims.get(timeout=60) for _ in processes]
    finally:
        end.set()
        for process in processes:
            process.join(60)


def test_processes_spread_evenly_and_keep_their_gpu(tmp_path: Path) -> None:
    with claiming(5, tmp_path) as found:
        assert Counter(first for first, _ in found) == {"4": 3, "6": 2}
        assert all(first == second for first, second in found)


def test_a_process_that_ended_has_freed_its_place(tmp_path: Path) -> None:
    with claiming(1, tmp_path) as found:
        assert [first for first, _ in found] == ["4"]
    with claiming(2, tmp_path) as found:
        assert sorted(first for first, _ in found) == ["4", "6"]


def test_a_gpu_without_processes_comes_first_whatever_ended_before(tmp_path: Path) -> None:
    with contextlib.ExitStack() as staying:
        with claiming(1, tmp_path) as first, claiming(1, tmp_path) as second:
            third = staying.enter_context(claiming(1, tmp_path))
            assert [found[0][0] for found in (first, second, third)] == ["4", "6", "4"]
        with claiming(1, tmp_path) as found:
            assert found[0][0] == "6"


def test_processes_that_choose_among_other_gpus_do_not_push_each_other(tmp_path: Path) -> None:
    with (
        claiming(1, tmp_path, ["0", "1"]),
        claiming(3, tmp_path, ["2", "3"]),
        claiming(1, tmp_path, ["0", "1"]) as last,
    ):
        assert [first for first, _ in last] == ["1"]


@pytest.mark.parametrize(
    ("given", "names"),
    [("2,0", ("2", "0")), ("GPU-1f, MIG-2/1/0", ("GPU-1f", "MIG-2/1/0")), ("", ()), ("-1", ()), ("3,-1,0", ("3",))],
)
def test_the_gpus_that_a_user_chose_are_those_that_processes_may_use(
    given: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == names


def test_without_a_choice_all_gpus_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert visible_gpus() == ("0", "1", "2")
