"""Two processes (gloo, on the CPU) that estimate together, against one process on all of their batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.model.targets import find_targets, fingerprint
from tests.conftest import build_batch, build_model
from tests.gradient import FULL_CAPACITY, HALF, Batch, assert_singular_values_close, multiplied, relative, split_batch
from tests.gradient.test_estimate import exploding
from tests.gradient.test_out_of_memory import forward

PROCESSES = 2
PATIENCE = timedelta(seconds=60)
"""After which a process that waits for the other gives up, and the tests with it."""
LossFunction = Callable[[nn.Module, Batch], Tensor]


def plain(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch).loss


def failing(call: int) -> LossFunction:
    calls = 0

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        return model(**batch).loss * (float("nan") if calls == call else 1)

    return loss_function


def some_layers(model: nn.Module, batch: Batch) -> Tensor:
    """Of two layers, those that a batch names take part."""
    assert isinstance(model, nn.ModuleDict)
    return torch.stack([model[name](batch["x"]).tanh() for name in batch["names"]]).sum(0).square().mean()


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(6, 5)})


def llama() -> PreTrainedModel:
    return build_model("llama").eval()


def sharded_llama() -> PreTrainedModel:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = llama(), init_device_mesh("cpu", (PROCESSES,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def rows(count: int, each: int = 1) -> list[Batch]:
    """Micro-batches of random rows, with different numbers of labels."""
    batch = build_batch("llama", rows=count * each)
    batch["labels"][0, :-2] = -100
    return split_batch(batch, each)


def one_row_without_labels() -> list[Batch]:
    """Batches of which the second process has one whose half, if it is split, has no labels."""
    batches = rows(4, each=2)
    batches[1]["labels"][1] = -100
    return batches


def named_batches(*names: str) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"x": torch.randn(4, 6, generator=generator), "labels": torch.ones(4), "names": name}  # type: ignore[dict-item]
        for name in names
    ]


@dataclass(frozen=True)
class Case:
    """An estimation: of process p, with every second micro-batch, from number p.

    Args:
        loss_functions: of each process.
        capacity: 8 leaves much out, so that the order in which micro-batches are merged shows, and where one without
            weight comes in between.
    """

    estimator: Callable[[], Estimator]
    batches: list[Batch]
    model: Callable[[], nn.Module] = llama
    alone: Callable[[], nn.Module] = llama
    loss_functions: tuple[Callable[[], LossFunction], Callable[[], LossFunction]] = (lambda: plain, lambda: plain)
    capacity: int = 8


def both(case: str, batches: list[Batch], **options: Any) -> dict[str, Case]:
    return {
        f"{name}, {case}": Case(estimator, batches, **options)
        for name, estimator in (("exact", ExactEstimator), ("sketch", SketchEstimator))
    }


CASES = {
    **both("as many each", rows(6)),
    "sketch, three passes": Case(lambda: SketchEstimator(passes=3), rows(6)),
    **both("one fewer", rows(5)),
    **both("none for the second", rows(6)[:1]),
    **both(
        "another layer each",
        named_batches("a", "b", "ab", "b"),
        model=two_layers,
        alone=two_layers,
        loss_functions=(lambda: some_layers, lambda: some_layers),
        capacity=5,
    ),
    **both("memory for a row in the second", rows(4, each=2), loss_functions=(lambda: plain, lambda: forward(1))),
    "sketch, sharded": Case(SketchEstimator, rows(6), sharded_llama),
    "sketch, sharded, memory for a row without labels": Case(
        SketchEstimator,
        one_row_without_labels(),
        sharded_llama,
        loss_functions=(lambda: forward(1), lambda: forward(1)),
        capacity=FULL_CAPACITY,
    ),
    "sketch, sharded, one fewer": Case(lambda: SketchEstimator(passes=2), rows(5), sharded_llama),
}
LAYER = "model.layers.0.self_attn.v_proj"
FAILURES = {
    **both("a loss", rows(6), loss_functions=(lambda: plain, lambda: failing(2))),
    **both("a gradient", rows(6), loss_functions=(lambda: plain, lambda: exploding(LAYER, 2))),
    "sketch, a loss, sharded": Case(
        SketchEstimator, rows(6), sharded_llama, loss_functions=(lambda: plain, lambda: failing(2))
    ),
    "exact, shards": Case(ExactEstimator, rows(2), sharded_llama),
}


def work(rank: int, folder: str) -> None:
    """In a process of its own: all estimations one after the other, and what came of them."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES, timeout=PATIENCE
    )
    errors = {}
    for name, case in (CASES | FAILURES).items():
        try:
            artifact = estimate_gradients(
                case.model(),
                case.batches[rank::PROCESSES],
                estimator=case.estimator(),
                loss_function=case.loss_functions[rank](),
                capacity=case.capacity,
            )
            artifact.save(Path(folder) / str(rank) / name)
        except GradientError as error:
            errors[name] = str(error)
    prints = [fingerprint(find_targets(model)) for model in (llama(), sharded_llama())]
    (Path(folder) / f"{rank}.json").write_text(json.dumps({"errors": errors, "fingerprints": prints}))
    distributed.destroy_process_group()


@dataclass(frozen=True)
class Results:
    """What each process found."""

    folder: Path

    def artifacts(self, case: str) -> list[GradientArtifact]:
        return [GradientArtifact.load(self.folder / str(rank) / case) for rank in range(PROCESSES)]

    def reported(self, what: str) -> list[Any]:
        return [json.loads((self.folder / f"{rank}.json").read_text())[what] for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=PROCESSES)
    return Results(folder)


def halves(batches: list[Batch]) -> list[Batch]:
    """Single rows in the order in which both processes come to them."""
    parts = [[row for batch in batches[rank::PROCESSES] for row in split_batch(batch, 1)] for rank in range(PROCESSES)]
    return [row for together in zip(*parts, strict=True) for row in together]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_find_what_one_process_finds(name: str, results: Results) -> None:
    case = CASES[name]
    first, second = results.artifacts(name)
    batches = halves(case.batches) if "memory" in name else case.batches
    alone = estimate_gradients(
        case.alone(),
        [batch for batch in batches if bool((batch["labels"] != -100).any())],
        estimator=case.estimator(),
        loss_function=case.loss_functions[0](),
        capacity=case.capacity,
    )
    assert set(first.factors) == set(second.factors) == set(alone.factors)
    for layer, factors in alone.factors.items():
        one, other = first.factors[layer], second.factors[layer]
        for part in ("left", "singular", "right", "missed"):
            if getattr(one, part) is not None:
                assert torch.equal(getattr(one, part), getattr(other, part)), layer
        assert one.norm == other.norm == pytest.approx(factors.norm, rel=1e-5)
        assert_singular_values_close(one, factors)
        assert relative(multiplied(one), multiplied(factors)) < (1e-5 if factors.missed is None else HALF), layer
    assert first.info["micro_batches"] == len(batches)
    counted = ("items", "estimator", "passes")
    assert {what: first.info[what] for what in counted} == {what: alone.info[what] for what in counted}
    assert first.info == second.info
    assert first.info["loss"] == pytest.approx(alone.info["loss"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name in FAILURES if "a loss" in name])
def test_a_loss_that_is_not_finite_in_one_stops_both(name: str, results: Results) -> None:
    first, second = (errors[name] for errors in results.reported("errors"))
    assert first == "1 of 2 processes failed in micro-batch 2"
    assert second.startswith("the loss of micro-batch 2 is nan")


@pytest.mark.parametrize("name", [name for name in FAILURES if "a gradient" in name])
def test_a_gradient_that_is_not_finite_in_one_is_named_by_both(name: str, results: Results) -> None:
    assert [errors[name] for errors in results.reported("errors")] == [
        f"the gradient of {LAYER} is not finite in micro-batch 2"
    ] * 2


def test_the_exact_estimator_refuses_shards(results: Results) -> None:
    for errors in results.reported("errors"):
        assert "gradient=sketch" in errors["exact, shards"]
        assert "\n" not in errors["exact, shards"]


def test_nothing_else_failed(results: Results) -> None:
    """A case that stops in both processes would otherwise be noticed as a missing file only."""
    for errors in results.reported("errors"):
        assert set(errors) == set(FAILURES)


def test_shards_have_the_fingerprint_of_the_full_weights(results: Results) -> None:
    full = fingerprint(find_targets(llama()))
    assert results.reported("fingerprints") == [[full, full]] * 2
