"""The store of gradients: each is computed once, whoever asks, and damage is noticed and mended."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import FACTORS_FILE, MANIFEST_FILE, GradientArtifact
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.gradient.store import ArtifactStore

KEY = "0123456789abcdef01234567"
PATIENCE = 60.0
"""Seconds after which a test that waits for another thread or process gives up."""


def build(capacity: int, seed: int = 0) -> GradientArtifact:
    grad = torch.randn(10, 12, generator=torch.Generator().manual_seed(seed))
    return GradientArtifact({"layer": truncated_svd(grad, capacity)}, capacity, {"model": "tiny", "rows": 4})


class Asked:
    """Asks a store for a gradient; counts how often it was computed and keeps what the user was told."""

    def __init__(self, root: Path):
        self.store = ArtifactStore(root)
        self.computed = 0
        self.told: list[str] = []

    def get(self, capacity: int, key: str = KEY, seed: int = 0) -> tuple[GradientArtifact, bool]:
        def compute() -> GradientArtifact:
            self.computed += 1
            return build(capacity, seed)

        return self.store.get(key, capacity, compute, self.told.append)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def test_the_first_computes_and_the_second_reuses(asked: Asked) -> None:
    first, reused_first = asked.get(4)
    second, reused_second = asked.get(4)
    assert (reused_first, reused_second, asked.computed, asked.told) == (False, True, 1, [])
    assert first.key == second.key == KEY
    assert torch.equal(first.factors["layer"].left, second.factors["layer"].left)


def test_a_gradient_of_a_shared_cache_is_used_and_nothing_is_written_there(tmp_path: Path) -> None:
    Asked(tmp_path / "team").get(4)
    before = sorted(tmp_path.rglob("*"))
    asked = Asked(tmp_path / "own")
    asked.store = ArtifactStore(tmp_path / "own", tmp_path / "team")
    assert asked.get(4)[1]
    assert (asked.computed, sorted(tmp_path.rglob("*"))) == (0, before)  # no lock either
    assert asked.get(8)[0].capacity == 8
    assert (asked.computed, len(asked.told)) == (1, 1)
    assert "keeps 4 singular vectors, and 8 are needed" in asked.told[0]
    assert [entry.path.parents[1].name for entry in asked.store.entries()] == ["own"]
    assert asked.get(4)[0].capacity == 8


def test_another_key_is_another_gradient(asked: Asked) -> None:
    asked.get(4)
    artifact, reused = asked.get(4, key="f" * 24)
    assert (artifact.key, reused, asked.computed) == ("f" * 24, False, 2)


def test_a_larger_capacity_serves_a_smaller_request(asked: Asked) -> None:
    asked.get(8)
    artifact, reused = asked.get(4)
    assert (artifact.capacity, reused, asked.computed) == (8, True, 1)


def test_a_smaller_capacity_is_replaced_and_said(asked: Asked) -> None:
    asked.get(4)
    artifact, reused = asked.get(8)
    assert (artifact.capacity, reused, asked.computed) == (8, False, 2)
    assert len(asked.told) == 1
    assert "keeps 4 singular vectors, and 8 are needed" in asked.told[0]
    assert [entry.capacity for entry in asked.store.entries()] == [8]


def test_find_looks_without_computing(asked: Asked) -> None:
    assert asked.store.find(KEY, 4) is None
    asked.get(4)
    found = asked.store.find(KEY, 4)
    assert found is not None
    assert (found.key, found.capacity, found.layers, found.info["model"]) == (KEY, 4, 1, "tiny")
    assert asked.store.find(KEY, 5) is None
    assert asked.store.find("f" * 24, 4) is None


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / FACTORS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / FACTORS_FILE).write_bytes(content)


def cut_off(folder: Path) -> None:
    (folder / FACTORS_FILE).write_bytes((folder / FACTORS_FILE).read_bytes()[:-10])


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off, lose_the_manifest])
def test_a_damaged_artifact_is_set_aside_and_computed_again(asked: Asked, damage: Callable[[Path], None]) -> None:
    full, _ = asked.get(4)
    damage(asked.store.path(KEY))
    artifact, reused = asked.get(4)
    assert (reused, asked.computed) == (False, 2)
    assert torch.equal(artifact.factors["layer"].left, full.factors["layer"].left)
    assert len(asked.told) == 1
    assert "damaged" in asked.told[0]
    assert [item.name for item in asked.store.leftovers()] == [f"{KEY}.damaged"]
    assert [entry.damage for entry in asked.store.verify()] == [""]


@pytest.mark.parametrize("damage", [flip_a_byte, cut_off, lose_the_manifest])
def test_verify_tells_the_damaged_from_the_whole(asked: Asked, damage: Callable[[Path], None]) -> None:
    asked.get(4)
    asked.get(4, key="f" * 24)
    damage(asked.store.path(KEY))
    assert {entry.key: bool(entry.damage) for entry in asked.store.verify()} == {KEY: True, "f" * 24: False}


def test_an_artifact_without_a_manifest_is_not_found(asked: Asked) -> None:
    asked.get(4)
    lose_the_manifest(asked.store.path(KEY))
    assert asked.store.find(KEY, 4) is None


def test_a_computation_that_fails_leaves_nothing_and_lets_others_try(asked: Asked) -> None:
    def fail() -> GradientArtifact:
        raise GradientError("not finite")

    with pytest.raises(GradientError, match="not finite"):
        asked.store.get(KEY, 4, fail, asked.told.append)
    assert list(asked.store.entries()) == []
    assert asked.store.leftovers() == []
    assert asked.get(4)[1] is False


def test_entries_are_listed_newest_first_and_removed_one_by_one(asked: Asked) -> None:
    for age, key in enumerate(("a" * 24, "b" * 24, "c" * 24)):
        asked.get(4, key=key)
        os.utime(asked.store.path(key), (1_000_000 - age, 1_000_000 - age))
    entries = list(asked.store.entries())
    assert [entry.key[0] for entry in entries] == ["a", "b", "c"]
    asked.store.discard(entries[1].key)
    assert [entry.key[0] for entry in asked.store.entries()] == ["a", "c"]


def test_a_stores_size_is_its_bytes_on_disk(asked: Asked) -> None:
    asked.get(4)
    (entry,) = asked.store.entries()
    assert entry.size == sum(file.stat().st_size for file in asked.store.path(KEY).iterdir())


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "missing")
    assert list(store.entries()) == list(store.verify()) == store.leftovers() == []


def test_the_second_to_ask_is_told_that_it_waits_and_then_reuses(tmp_path: Path) -> None:
    computing, waits = threading.Event(), threading.Event()
    told: list[str] = []
    found: list[bool] = []

    def slow() -> GradientArtifact:
        computing.set()
        assert waits.wait(PATIENCE)
        return build(4)

    def tell(text: str) -> None:
        told.append(text)
        waits.set()

    first = threading.Thread(target=lambda: found.append(ArtifactStore(tmp_path).get(KEY, 4, slow, told.append)[1]))
    first.start()
    assert computing.wait(PATIENCE)
    _, reused = ArtifactStore(tmp_path).get(KEY, 4, lambda: pytest.fail("computed twice"), tell)
    first.join(PATIENCE)
    assert (found, reused) == ([False], True)
    assert len(told) == 1
    assert "another process" in told[0]


def ask_slowly(root: str, ready: Any, answers: Any) -> None:
    """In a process of its own: asks for the gradient at the same moment as another process."""

    def compute() -> GradientArtifact:
        time.sleep(0.5)
        artifact = build(4, seed=os.getpid())
        return replace(artifact, info={"computed_by": os.getpid()})

    ready.wait(PATIENCE)
    artifact, reused = ArtifactStore(Path(root)).get(KEY, 4, compute, lambda _: None)
    answers.put((artifact.info["computed_by"], reused))


def test_two_processes_that_ask_for_one_key_compute_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=ask_slowly, args=(str(tmp_path), ready, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=PATIENCE) for _ in processes]
    for process in processes:
        process.join(PATIENCE)
    assert sorted(reused for _, reused in found) == [False, True]
    assert len({computed_by for computed_by, _ in found}) == 1
