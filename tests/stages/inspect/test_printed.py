"""The figures that `loraga inspect` prints for a kind of layers, against numpy on the dense matrices in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.lora.layers import ADAPTER, lora_layers
from tests.helpers import Loraga

Matrices = dict[str, np.ndarray]
KIND = "mlp.up_proj"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, saved_bases: dict[str, Path]) -> dict[str, Path]:
    """Two adapters that PEFT alone wrote, of ranks 5 and 3 and with random factors."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, rank in (("one", 5), ("other", 3)):
        torch.manual_seed(rank)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(saved_bases["llama"]),
            LoraConfig(r=rank, target_modules=["up_proj", "q_proj"], init_lora_weights=False),
        )
        model.save_pretrained(str(folder / name))
    return {name: folder / name for name in ("one", "other")}


def dense(base: Path, adapter: Path) -> tuple[Matrices, Matrices]:
    """ΔW as PEFT alone computes it, and W, of the layers of the kind."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), adapter)
    layers: dict[str, Any] = {name: item for name, item in lora_layers(model).items() if name.endswith(KIND)}
    return (
        {name: layer.get_delta_weight(ADAPTER).detach().double().numpy() for name, layer in layers.items()},
        {name: layer.get_base_layer().weight.detach().double().numpy() for name, layer in layers.items()},
    )


def rows_of(printed: str, label: str) -> list[list[str]]:
    """The cells behind a label, of every table that has it."""
    return [line.split()[2:] for line in printed.splitlines() if line.split()[:1] == [label]]


def leading(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, singular, vh = np.linalg.svd(matrix)
    return u[:, :rank], singular[:rank], vh[:rank]


def test_what_an_adapter_changes(loraga: Loraga, adapters: dict[str, Path], saved_bases: dict[str, Path]) -> None:
    changes, weights = dense(saved_bases["llama"], adapters["one"])
    of_change, of_base = rows_of(loraga("inspect", str(adapters["one"]), "--with-base"), KIND)
    spectra = [leading(change, 5)[1] for change in changes.values()]
    shares = [singular / singular.sum() for singular in spectra]
    whole = np.linalg.norm(spectra)
    cuts = [np.linalg.norm([singular[rank:] for singular in spectra]) / whole for rank in (1, 2, 4)]
    effective = np.mean([np.exp(-(share * np.log(share)).sum()) for share in shares])
    stable = np.mean([(singular**2).sum() / singular[0] ** 2 for singular in spectra])
    assert of_change == ["5", f"{whole:.3g}", f"{effective:.1f}", f"{stable:.1f}", *(f"{cut:.1%}" for cut in cuts)]

    along_change, along_weight, factors, count = [], [], [], 0
    for name, change in changes.items():
        (u, _, vh), (_, of_w, _) = leading(change, 5), leading(weights[name], 5)
        along_change.append(np.linalg.norm(u.T @ weights[name] @ vh.T))
        along_weight.append(np.linalg.norm(of_w))
        factors.append(np.linalg.norm(change) / along_change[-1])
        tuned, left = (np.linalg.svd(item, full_matrices=False)[0] for item in (weights[name] + change, weights[name]))
        count += int((np.abs(tuned[:, :10].T @ left).max(1) < 0.5).sum())
    relative = whole / np.linalg.norm(list(weights.values()))
    ratio, change_cell, weight_cell, random, factor, *of = of_base
    assert (ratio, change_cell) == (f"{relative:.2%}", f"{np.mean(along_change):.3g}")
    assert (weight_cell, factor) == (f"{np.mean(along_weight):.3g}", f"{np.mean(factors):.3g}")
    assert of == [str(count), "of", "20"]
    # of r random directions on each side, ‖W‖² r² / (d_out d_in) in the mean
    d_out, d_in = next(iter(weights.values())).shape
    expected = np.mean([np.linalg.norm(weight) for weight in weights.values()]) * 5 / (d_out * d_in) ** 0.5
    assert float(random) == pytest.approx(expected, rel=0.5)


def test_how_two_adapters_differ(loraga: Loraga, adapters: dict[str, Path], saved_bases: dict[str, Path]) -> None:
    first, second = (dense(saved_bases["llama"], adapters[name])[0] for name in ("one", "other"))
    printed = loraga("inspect", *(str(folder) for folder in adapters.values()), "--modules", "up_proj")
    (row,) = rows_of(printed, KIND)
    a, b = (np.concatenate([item.ravel() for item in matrices.values()]) for matrices in (first, second))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    similar = []
    for name, change in first.items():
        (u, _, vh), (v, _, wh) = leading(change, 5), leading(second[name], 3)
        inputs, outputs = vh @ wh.T, u.T @ v
        similar.append([inputs[0, 0] ** 2, (inputs**2).sum() / 3, outputs[0, 0] ** 2, (outputs**2).sum() / 3])
    norms = [f"{np.linalg.norm(item):.3g}" for item in (a, b)]
    assert row == [*norms, f"{cosine:.3f}", *(f"{value:.3f}" for value in np.mean(similar, axis=0))]
    d_out, d_in = next(iter(first.values())).shape
    assert f"have φ(r,r) {5 / d_in:.3f} (A) and {5 / d_out:.3f} (B) on average" in printed


def test_what_ranks_follow_of_a_gradient(loraga: Loraga, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{block}.{kind}" for block in (0, 1) for kind in ("q", "up")]
    gradients = {name: torch.randn(24, 16, generator=generator) * (1 + len(name) % 3) for name in names}
    kept = {name: truncated_svd(item, 8) for name, item in gradients.items()}
    GradientArtifact(kept, 8, {"target_modules": ["q", "up"]}, "abc1").save(
        ArtifactStore(tmp_path / "cache").path("abc1")
    )
    printed = loraga("inspect", "abc1", "--share", "0.5")
    whole = sum(float(item.double().square().sum()) for item in gradients.values())
    for label, chosen in (("q", names[::2]), ("model.layers.1", names[2:])):
        squares = [np.linalg.svd(gradients[name].double().numpy(), compute_uv=False) ** 2 for name in chosen]
        own = sum(square.sum() for square in squares)
        followed = [sum(square[: 2 * rank].sum() for square in squares) / own for rank in (1, 2, 4)]
        (row,) = rows_of(printed, label)
        assert row[:4] == [f"{share:.1%}" for share in (own / whole, *followed)]
