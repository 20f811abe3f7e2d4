"""How the rows of an optimizer step are divided over processes and forward passes."""

from __future__ import annotations

import itertools
import random

import pytest

from lora_ga_cli.training.passes import Limits, divide, in_order

DRAW = random.Random(3)
LENGTHS = [min(1024, round(DRAW.lognormvariate(5.2, 0.55))) for _ in range(400)]
ROWS = list(range(100, 132))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize(("rows", "tokens"), [(None, 2048), (8, None), (3, 1000), (None, None), (None, 10)])
def test_every_row_is_in_one_pass_and_no_pass_exceeds_its_limits(
    padded: bool, processes: int, rows: int | None, tokens: int | None
) -> None:
    limits = Limits(rows, tokens, padded)
    shares = divide(ROWS, LENGTHS, limits, processes)
    assert len(shares) == processes
    passes = list(itertools.chain(*shares))
    assert sorted(itertools.chain(*passes)) == ROWS
    for own in passes:
        assert rows is None or len(own) <= rows
        assert tokens is None or len(own) == 1 or limits.cost(own, LENGTHS) <= tokens
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_padded_passes_need_far_fewer_tokens_than_random_ones() -> None:
    limits = Limits(8, None, padded=True)
    computed = sum(limits.cost(own, LENGTHS) for own in divide(ROWS, LENGTHS, limits)[0])
    random_ones = [ROWS[begin : begin + 8] for begin in range(0, 32, 8)]
    assert computed < 0.75 * sum(limits.cost(own, LENGTHS) for own in random_ones)


def test_the_largest_padded_pass_is_as_small_as_any_division_of_neighbors_makes_it() -> None:
    rows, limits = ROWS[:9], Limits(None, None, padded=True)
    lengths = sorted((LENGTHS[row] for row in rows), reverse=True)
    best = min(
        max(len(part) * part[0] for part in (lengths[:a], lengths[a:b], lengths[b:]) if part)
        for a in range(1, 10)
        for b in range(a, 10)
    )
    passes = divide(rows, LENGTHS, limits, processes=3)
    assert max(limits.cost(own, LENGTHS) for share in passes for own in share) == best


def test_flattened_passes_have_about_as_many_tokens_each() -> None:
    limits = Limits(None, 2048, padded=False)
    costs = [limits.cost(own, LENGTHS) for own in divide(ROWS, LENGTHS, limits)[0]]
    assert len(costs) <= -(-sum(LENGTHS[row] for row in ROWS) // 2048) + 1
    assert max(costs) - min(costs) < 0.1 * max(costs)


def test_processes_get_about_as_many_tokens() -> None:
    limits = Limits(None, 1024, padded=False)
    work = [sum(limits.cost(own, LENGTHS) for own in share) for share in divide(ROWS, LENGTHS, limits, 4)]
    assert max(work) < 1.15 * min(work)


def test_a_process_without_a_row_has_no_pass() -> None:
    assert sorted(map(len, divide([7, 8], LENGTHS, Limits(None, 4096, padded=False), 3))) == [0, 1, 1]


def test_rows_to_evaluate_are_read_from_the_longest_to_the_shortest() -> None:
    passes = in_order(ROWS, LENGTHS, Limits(None, 3000, padded=True))
    lengths = [LENGTHS[row] for own in passes for row in own]
    assert lengths == sorted(lengths, reverse=True)
