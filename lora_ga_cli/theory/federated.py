"""A federated link in one process: FedRAC-LoRA (arXiv 2410.08305; its round is not verified against the paper)."""

from __future__ import annotations

from collections.abc import Sequence

from lora_ga_cli.theory.chains import Sketches, Solver
from lora_ga_cli.theory.problems import Problem, Weights


def averaged(solver: Solver, clients: Sequence[Problem], shares: Sequence[float]) -> Solver:
    """A solver that has every client train the free factor on its own problem, and averages what they trained.

    All clients get the same frozen factor, so that the average of their products is one product of the same rank:
    Σ_k p_k·(B_k A) = (Σ_k p_k·B_k) A. With one step at each client it is the central step on Σ_k p_k·f_k.

    Args:
        solver: how a client trains.
        clients: the problems f_k.
        shares: p_k, the clients' shares of all rows.
    """

    def solve(_: Problem, weights: Weights, sketches: Sketches, rate: float) -> Weights:
        trained = [solver(client, weights, sketches, rate) for client in clients]
        return tuple(
            sum((share * factor for share, factor in zip(shares, layer, strict=True)), start=layer[0].new_zeros(()))
            for layer in zip(*trained, strict=True)
        )

    return solve
