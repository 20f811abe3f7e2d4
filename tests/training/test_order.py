"""Which rows a run reads at every optimizer step."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lora_ga_cli.training.order import Order, pack

DRAW = random.Random(0)
LENGTHS = [DRAW.randint(5, 100) for _ in range(1003)]


def test_an_epoch_reads_every_row_once_and_the_last_step_has_what_is_left() -> None:
    order = Order(LENGTHS, 32, seed=1)
    steps = order.epoch(0)
    assert sorted(row for step in steps for row in step) == list(range(1003))
    assert [len(step) for step in steps] == [32] * 31 + [11]
    assert len(steps) == order.steps_per_epoch


def test_epochs_and_seeds_have_orders_of_their_own_which_are_the_same_every_time() -> None:
    orders = [Order(LENGTHS, 32, seed=seed).epoch(epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(one != other for place, one in enumerate(orders) for other in orders[:place])
    assert orders[1] == Order(LENGTHS, 32, seed=1).epoch(1)


def test_the_links_of_a_chain_read_what_a_run_without_links_reads() -> None:
    order = Order(LENGTHS, 32, seed=1)
    run = [*order.epoch(0), *order.epoch(1), *order.epoch(2)]
    assert order.steps(0, 10) + order.steps(10, 55) + order.steps(65, 20) == run[:85]


def test_grouping_makes_steps_of_similar_length_in_random_order() -> None:
    order = Order(LENGTHS, 32, seed=1, group_by_length=True)
    steps = order.epoch(0)
    assert sorted(row for step in steps for row in step) == list(range(1003))
    assert [len(step) for step in steps] == [32] * 31 + [11]
    spread = [np.ptp([LENGTHS[row] for row in step]) for step in steps[:-1]]
    assert max(spread) < 10
    means = [np.mean([LENGTHS[row] for row in step]) for step in steps[:-1]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5
    assert means != sorted(means, reverse=True)


def test_packs_hold_every_row_once_and_waste_little() -> None:
    packs = pack(LENGTHS, 128, seed=0)
    assert sorted(row for rows in packs for row in rows) == list(range(1003))
    filled = [sum(LENGTHS[row] for row in rows) for rows in packs]
    assert max(filled) <= 128
    assert np.mean(filled) > 0.97 * 128


def test_best_fit_decreasing_fills_the_smallest_room_that_is_left() -> None:
    assert sorted(map(sorted, pack([6, 5, 4, 4, 1], 10, seed=0))) in ([[0, 2], [1, 3, 4]], [[0, 3], [1, 2, 4]])


def test_a_row_longer_than_a_pack_is_alone() -> None:
    assert sorted(pack([20, 3, 4], 10, seed=0)) in ([[0], [1, 2]], [[0], [2, 1]])


@pytest.mark.parametrize("seed", [1, 2])
def test_steps_of_packs_count_packs(seed: int) -> None:
    order = Order(LENGTHS, 8, seed=seed, pack_length=128)
    steps = order.epoch(0)
    assert len(steps) == order.steps_per_epoch == -(-len(pack(LENGTHS, 128, seed=seed)) // 8)
    assert sorted(row for step in steps for row in step) == list(range(1003))
