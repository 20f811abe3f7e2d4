"""The error that a sketch estimates for itself, against its true error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.gradient.factors import CAUTION, Factors
from lora_ga_cli.gradient.quality import probe_errors
from tests.gradient.conftest import RANK, Quickstart

D_OUT, D_IN, KEPT = 12, 9, 4


def orthonormal(generator: torch.Generator, rows: int) -> Tensor:
    """Two layers' columns."""
    return torch.linalg.qr(torch.randn(2, rows, KEPT, generator=generator))[0]


def test_estimated_errors_are_the_energy_that_directions_miss() -> None:
    """For a known error E, over many probes: ``(‖Eᵀ u‖² + ‖E v‖²) / 2`` of each triplet, and ``‖E‖²``."""
    generator = torch.Generator().manual_seed(0)
    left, right = orthonormal(generator, D_OUT), orthonormal(generator, D_IN)
    singular = torch.tensor([[9.0, 5.0, 2.0, 1.0], [90.0, 5.0, 2.0, 0.0]])
    error = torch.randn(2, D_OUT, D_IN, generator=generator)
    error += 3 * left[..., :1] @ torch.randn(2, 1, D_IN, generator=generator)  # most of it along the first direction
    grad = (left * singular[:, None]) @ right.mT + error
    count = 40_000
    left_probes = torch.randn(D_OUT, count, generator=generator)
    right_probes = torch.randn(D_IN, count, generator=generator)
    missed, rest = probe_errors(
        (left, singular, right),
        probes=(left_probes, right_probes),
        products=(grad.mT @ left_probes, grad @ right_probes),
    )
    lost_left = (error.mT @ left).double().square().sum(1)
    lost_right = (error @ right).double().square().sum(1)
    torch.testing.assert_close(missed, (lost_left + lost_right) / 2, rtol=0.03, atol=0)
    torch.testing.assert_close(rest, error.double().square().sum((1, 2)), rtol=0.03, atol=0)
    assert float(lost_left[0, 0] / lost_left[0, 1]) > 3  # so that a mix-up of directions would be seen


def test_the_estimated_error_of_an_exact_sketch_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = orthonormal(generator, D_OUT), orthonormal(generator, D_IN)
    singular = torch.tensor([4.0, 3.0, 2.0, 1.0]).expand(2, -1)
    grad = (left * singular[:, None]) @ right.mT
    probes = torch.randn(D_OUT, 10, generator=generator), torch.randn(D_IN, 10, generator=generator)
    missed, rest = probe_errors((left, singular, right), probes, (grad.mT @ probes[0], grad @ probes[1]))
    assert float(missed.max()) < 1e-10
    assert float(rest.max()) < 1e-10


def test_alignment_is_the_followed_share_of_followed_and_missed_energy() -> None:
    """Directions that hold 16 and 9 and miss 1 and 2: ``sqrt(25 / (25 + caution · 3))``."""
    missed = torch.tensor([1.0, 2.0, 50.0])
    factors = Factors(torch.eye(5)[:, :3], torch.tensor([4.0, 3.0, 1.0]), torch.eye(4)[:, :3], 6.0, missed)
    assert factors.alignment(1) == pytest.approx((16 / (16 + CAUTION)) ** 0.5)
    assert factors.alignment(2) == pytest.approx((25 / (25 + 3 * CAUTION)) ** 0.5)
    assert factors.transposed().alignment(2) == factors.alignment(2)


def test_exact_factors_are_fully_aligned(quickstart: Quickstart) -> None:
    artifact = estimate_gradients(
        quickstart.model, quickstart.batches(16), capacity=2 * RANK, estimator=ExactEstimator()
    )
    assert set(artifact.alignment(RANK).values()) == {1.0}
    assert min(quickstart.alignments(artifact).values()) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module", params=[1, 2], ids=["one pass", "two passes"])
def tight(request: pytest.FixtureRequest, quickstart: Quickstart) -> GradientArtifact:
    """A sketch with no more room than a start of rank 8 takes, whose error is as large as errors get."""
    return estimate_gradients(
        quickstart.model, quickstart.batches(4), capacity=2 * RANK, estimator=SketchEstimator(request.param)
    )


def test_the_estimated_loss_of_alignment_is_near_the_true_one(tight: GradientArtifact, quickstart: Quickstart) -> None:
    """Wherever it matters: in every layer that loses more than a thousandth."""
    true, estimated = quickstart.alignments(tight), tight.alignment(RANK)
    ratios = {name: (1 - estimated[name]) / (1 - value) for name, value in true.items() if 1 - value > 1e-3}
    assert len(ratios) > 5
    assert {name: ratio for name, ratio in ratios.items() if not 0.5 < ratio < 4} == {}


def test_an_estimated_loss_is_small_where_the_true_one_is(tight: GradientArtifact, quickstart: Quickstart) -> None:
    """No false alarm: a layer that loses less than a thousandth is not said to lose a hundredth."""
    true, estimated = quickstart.alignments(tight), tight.alignment(RANK)
    good = [name for name, value in true.items() if 1 - value < 1e-3]
    assert good
    assert min(estimated[name] for name in good) > 0.99


def test_the_norm_is_that_of_the_full_gradient(tight: GradientArtifact, quickstart: Quickstart) -> None:
    """Of which 16 singular values hold too small a part for this to be their own norm."""
    for name, grad in quickstart.grads.items():
        factors = tight.factors[name]
        assert factors.norm == pytest.approx(float(grad.norm()), rel=0.02)
    assert min(factors.energy(2 * RANK) for factors in tight.factors.values()) < 0.95
    assert max(factors.energy(2 * RANK) for factors in tight.factors.values()) <= 1
