"""The gradients of experts against autograd's, one expert at a time, and experts that no token was routed to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.model.checkpointing import checkpoint_blocks
from tests.mixtures import EXPERTS, MIXTURES, build_mixture

Batch = dict[str, Tensor]
D_IN, D_OUT, CAPACITY = 12, 20, 8
ESTIMATORS = {"exact": ExactEstimator, "sketch": SketchEstimator, "sketch twice": lambda: SketchEstimator(passes=2)}
all_estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)


class Bank(nn.Module):
    """Experts in one parameter, (experts, d_out, d_in): row i of a batch is given to expert ``chosen[i]``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        self.weight = nn.Parameter(torch.randn(EXPERTS, D_OUT, D_IN))

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        return torch.einsum("bi,boi->bo", x, self.weight[chosen])


class Parameters(nn.Module):
    """A loss of what experts in one parameter compute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bank = Bank()

    def forward(self, x: Tensor, chosen: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.bank(x, chosen), labels)


class Loop(nn.Module):
    """The same loss with experts that are linear layers, in a loop over the rows."""

    def __init__(self, bank: Bank):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(D_IN, D_OUT, bias=False) for _ in range(EXPERTS))
        for expert, weight in zip(self.experts, bank.weight.detach(), strict=True):
            expert.weight = nn.Parameter(weight.double())

    def forward(self, x: Tensor, chosen: Tensor, labels: Tensor) -> Tensor:
        rows = [self.experts[int(number)](row.double()) for row, number in zip(x, chosen, strict=True)]
        return functional.cross_entropy(torch.stack(rows), labels)


def batches(experts: int) -> list[Batch]:
    """Two batches of rows for the first so many experts."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "x": torch.randn(rows, D_IN, generator=generator),
            "chosen": torch.arange(rows) % experts,
            "labels": torch.randint(0, D_OUT, (rows,), generator=generator),
        }
        for rows in (12, 20)
    ]


def estimated(
    model: nn.Module, rows: list[Batch], estimator: Estimator, modules: list[str], capacity: int = CAPACITY
) -> GradientArtifact:
    return estimate_gradients(
        model,
        rows,
        target_modules=modules,
        target_parameters="all-experts",
        capacity=capacity,
        estimator=estimator,
        loss_function=lambda of, batch: of(**batch) if isinstance(of, Parameters) else of(**batch).loss,
    )


@all_estimators
def test_each_expert_has_the_gradient_that_it_has_as_a_linear_layer(estimator: type[Estimator]) -> None:
    model, rows = Parameters(), batches(EXPERTS)
    artifact = estimated(model, rows, estimator(), [])
    loop = Loop(model.bank)
    items = sum(len(batch["labels"]) for batch in rows)
    for batch in rows:
        (loop(**batch) * len(batch["labels"]) / items).backward()
    assert list(artifact.factors) == [f"bank.weight.{number}" for number in range(EXPERTS)]
    for expert, factors in zip(loop.experts, artifact.factors.values(), strict=True):
        u, s, vt = torch.linalg.svd(expert.weight.grad)
        best = (u[:, :CAPACITY] * s[:CAPACITY]) @ vt[:CAPACITY]
        found = (factors.left.double() * factors.singular.double()) @ factors.right.double().T
        assert factors.norm == pytest.approx(float(s.norm()), rel=0.05)
        assert float((found - best).norm() / s.norm()) < (1e-5 if estimator is ExactEstimator else 0.05)


@all_estimators
@pytest.mark.parametrize("family", MIXTURES)
def test_the_experts_of_a_model_have_autograds_gradient(family: str, estimator: type[Estimator]) -> None:
    """In (d_out, d_in), however the model stores them, and beside linear layers of the same estimation."""
    model = build_mixture(family)
    ids = torch.randint(3, 259, (4, 32), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": part, "labels": part} for part in ids.split(2)]
    artifact = estimated(model, rows, estimator(), ["o_proj"], capacity=64)  # room for every direction
    sum(model(**batch).loss / len(rows) for batch in rows).backward()
    checked = 0
    for name, factors in artifact.factors.items():
        if ".experts." not in name:
            continue
        parameter_name, _, number = name.rpartition(".")
        gradient = model.get_parameter(parameter_name).grad[int(number)].double()
        gradient = gradient.T if family == "gpt_oss" else gradient
        assert factors.shape == gradient.shape
        found = (factors.left.double() * factors.singular.double()) @ factors.right.double().T
        assert float((found - gradient).norm() / gradient.norm()) < 5e-3  # vectors of the sketch are in half precision
        checked += 1
    assert checked >= 2 * EXPERTS - len(artifact.unreached)
    assert any("o_proj" in name for name in artifact.factors)


@all_estimators
def test_an_expert_that_gets_no_token_has_no_factors_and_is_listed(estimator: type[Estimator]) -> None:
    artifact = estimated(Parameters(), batches(EXPERTS - 1), estimator(), [])
    assert artifact.unreached == {f"bank.weight.{EXPERTS - 1}"}
    assert len(artifact.factors) == EXPERTS - 1


@all_estimators
def test_experts_of_which_none_gets_a_gradient_are_refused(estimator: type[Estimator]) -> None:
    model = Parameters()
    rows = [batch | {"x": torch.zeros_like(batch["x"])} for batch in batches(EXPERTS)]
    with pytest.raises(GradientError, match=r"bank\.weight"):
        estimated(model, rows, estimator(), [])


@all_estimators
def test_what_is_unreached_is_stored(estimator: type[Estimator], tmp_path: object) -> None:
    artifact = estimated(Parameters(), batches(EXPERTS - 1), estimator(), [])
    artifact.save(tmp_path / "artifact")  # type: ignore[operator]
    assert GradientArtifact.load(tmp_path / "artifact").unreached == artifact.unreached  # type: ignore[operator]


@all_estimators
def test_nothing_stays_on_the_model(estimator: type[Estimator]) -> None:
    model = build_mixture("mixtral")
    model.requires_grad_(False)
    ids = torch.arange(3, 35).view(2, 16)
    estimated(model, [{"input_ids": ids, "labels": ids}], estimator(), ["o_proj"])
    for parameter in model.parameters():
        assert (parameter.requires_grad, parameter.grad) == (False, None)
        assert not parameter._post_accumulate_grad_hooks


def test_checkpointed_blocks_change_no_gradient_of_an_expert() -> None:
    ids = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": ids, "labels": ids}]
    plain = estimated(build_mixture("mixtral"), rows, ExactEstimator(), ["o_proj"])
    model = build_mixture("mixtral")
    checkpoint_blocks(model, 1)
    again = estimated(model, rows, ExactEstimator(), ["o_proj"])
    for name, factors in plain.factors.items():
        torch.testing.assert_close(again.factors[name].singular, factors.singular)
