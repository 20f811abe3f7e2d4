"""Compares ways to condense a gradient in one pass, by accuracy for what they keep and compute, on exact gradients.

    python scripts/compare_sketches.py
    python scripts/compare_sketches.py --model FOLDER_OF_MINILM --rows cola/train.tsv.gz

Without options on the bundled base and its rows, else on MiniLM and CoLA; 64 rows, 8 at a time, rank 8, one seed.

- ``linear 2017``: ``Y = G Ω`` (k columns) and ``Z = Gᵀ Ψ`` (l columns), ``G ≈ Q (Ψᵀ Q)⁺ Zᵀ`` (Tropp, Yurtsever, Udell,
  Cevher 2017, arXiv 1609.00048).
- ``linear 2019``: the same with k columns on both sides and a core ``Φᵀ G Ξ`` of side 2k + 1 (arXiv 1902.08651).
- ``merged``: each micro-batch's own gradient condensed with a power iteration, and the factors merged (what
  ``gradient=sketch`` does).

Kept: stored numbers per layer, over d_out + d_in. Products: columns of thin products for each token (the cost of
a sketch). Alignment: first step of the initialization, over the best of rank 8 (1 is optimal), by layer.
"""

from __future__ import annotations

import argparse
import statistics

import bench_gradient as bench
import torch
from torch import Tensor

from lora_ga_cli.gradient.estimate import prepare_model
from lora_ga_cli.gradient.lowrank import eigenvectors, merge, orthonormal, singular_triplets
from lora_ga_cli.lora.initialization import first_step_alignment
from lora_ga_cli.model.losses import count_items
from lora_ga_cli.model.targets import find_targets

RANK = 8


def micro_batch_gradients(model: torch.nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """By target, the share of each micro-batch in the mean gradient: (micro-batches, d_out, d_in), float64."""
    targets = find_targets(model)
    grads: dict[str, list[Tensor]] = {name: [] for name in targets}
    items = [count_items(model, batch) for batch in batches]
    with prepare_model(model, dropout=False):
        for target in targets.values():
            target.weight.requires_grad_(True)
        for batch, count in zip(batches, items, strict=True):
            found = torch.autograd.grad(model(**batch).loss, [target.weight for target in targets.values()])
            for (name, target), grad in zip(targets.items(), found, strict=True):
                grads[name].append(target.oriented(grad).double() * count / sum(items))
    return {name: torch.stack(parts) for name, parts in grads.items()}


def gaussian(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_2017(grads: Tensor, k: int, sides: int) -> tuple[Tensor, Tensor, float, int]:
    grad = grads.sum(0)
    (m, n), psi = grad.shape, gaussian(grad.shape[0], sides, 1)
    basis, _ = torch.linalg.qr(grad @ gaussian(n, k, 2))
    inner = torch.linalg.lstsq(psi.T @ basis, psi.T @ grad).solution
    left, _, right = torch.linalg.svd(inner, full_matrices=False)
    return basis @ left, right.T, (k * m + sides * n) / (m + n), 2 * (k + sides)


def linear_2019(grads: Tensor, k: int) -> tuple[Tensor, Tensor, float, int]:
    grad, core = grads.sum(0), 2 * k + 1
    m, n = grad.shape
    left_test, right_test = gaussian(m, core, 1), gaussian(n, core, 2)
    left, _ = torch.linalg.qr(grad @ gaussian(n, k, 3))
    right, _ = torch.linalg.qr(grad.T @ gaussian(m, k, 4))
    inner = torch.linalg.lstsq(left_test.T @ left, left_test.T @ grad @ right_test).solution
    inner = torch.linalg.lstsq(right_test.T @ right, inner.T).solution.T
    u, _, v = torch.linalg.svd(inner)
    return left @ u, right @ v.T, (k * (m + n) + core**2) / (m + n), 2 * 2 * k + 2 * core


def merged(grads: Tensor, k: int, power_iterations: int = 1) -> tuple[Tensor, Tensor, float, int]:
    total: tuple[Tensor, Tensor] | None = None
    for grad in grads[:, None]:  # (1, d_out, d_in)
        (basis,) = orthonormal([grad @ gaussian(grad.shape[2], k, 1)])
        for _ in range(power_iterations):
            (back,) = orthonormal([grad.mT @ basis])
            (basis,) = orthonormal([grad @ back])
        pair = basis, grad.mT @ basis
        if total is None:
            total = pair
        else:
            merge([total], [pair])
    assert total is not None
    left, _, right = singular_triplets(*total, eigenvectors([total[1]])[0], k)
    return left[0], right[0], 2 * k, 4 * k * (1 + power_iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of MiniLM")
    parser.add_argument("--rows", help="CoLA's train.tsv")
    options = parser.parse_args()
    overrides = bench.cola(options.model, options.rows) if options.model else ["recipe=quickstart", "device=cpu"]
    grads = micro_batch_gradients(*bench.from_recipe(overrides))
    methods = {
        "linear 2017, k 64, l 128": lambda grad: linear_2017(grad, 64, 128),
        "linear 2019, k 64": lambda grad: linear_2019(grad, 64),
        "linear 2019, k 96": lambda grad: linear_2019(grad, 96),
        "merged, k 40, no power iteration": lambda grad: merged(grad, 40, 0),
        "merged, k 40": lambda grad: merged(grad, 40),
        "merged, k 64": lambda grad: merged(grad, 64),
    }
    print("| | kept | products | alignment, mean / worst |\n|---|---|---|---|")
    for name, method in methods.items():
        values = []
        for parts in grads.values():
            left, right, kept, products = method(parts)
            a0, b0 = right[:, :RANK].T, left[:, RANK : 2 * RANK]
            values.append(first_step_alignment(parts.sum(0), a0, b0))
        print(f"| {name} | {kept:.0f} | {products} | {statistics.mean(values):.4f} / {min(values):.4f} |", flush=True)


if __name__ == "__main__":
    main()
