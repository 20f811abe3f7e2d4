"""A federated link against the central one on the rows of all clients."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from lora_ga_cli.theory.chains import Side, Sketches, Solver, descent, draw_sketches, follow, one_factor, projected_step
from lora_ga_cli.theory.federated import averaged
from lora_ga_cli.theory.problems import Logistic, classification_rows, logistic, split

SIZES = [10, 20, 50]
PROBLEM: Logistic = logistic(classification_rows(80, 4, 6), 4, penalty=0.1)
CLIENTS, SHARES = split(PROBLEM, SIZES)


def links(solver: Solver, side: Side = "right", count: int = 5) -> torch.Tensor:
    """The errors of two chains, whose links all have sketches of their own."""
    generator = Generator().manual_seed(1)

    def draw() -> list[Sketches]:
        return [draw_sketches(PROBLEM, side, 2, "orthonormal", generator, chains=2)]

    return follow(PROBLEM, one_factor(PROBLEM, draw, solver, 1 / PROBLEM.smoothness, generator), count, 2).errors


def test_the_clients_problems_add_up_to_the_central_one() -> None:
    assert SHARES == [0.125, 0.25, 0.625]
    weights = (torch.randn(4, 6, generator=Generator().manual_seed(2), dtype=torch.float64),)
    total = sum(share * float(client.loss(weights)) for share, client in zip(SHARES, CLIENTS, strict=True))
    assert total == pytest.approx(float(PROBLEM.loss(weights)), abs=1e-14)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("solver", [projected_step, descent(1)], ids=["step", "descent"])
def test_one_local_step_of_every_client_is_the_central_step(solver: Solver, side: Side) -> None:
    federated = links(averaged(solver, CLIENTS, SHARES), side)
    torch.testing.assert_close(federated, links(solver, side), rtol=0, atol=1e-12)


def test_clients_count_by_their_rows() -> None:
    unweighted = links(averaged(projected_step, CLIENTS, [1 / 3] * 3))
    assert not torch.allclose(unweighted, links(projected_step), atol=1e-4)


def test_equal_clients_are_one_client_however_many_steps_they_make() -> None:
    torch.testing.assert_close(links(averaged(descent(5), [PROBLEM] * 4, [0.25] * 4)), links(descent(5)))


def test_several_local_steps_are_not_the_central_ones() -> None:
    """Each client moves towards its own minimum."""
    assert not torch.allclose(links(averaged(descent(5), CLIENTS, SHARES)), links(descent(5)), atol=1e-4)
