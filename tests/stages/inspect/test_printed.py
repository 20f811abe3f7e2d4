"""The figures that `loraga inspect` prints for a kind of layers, against numpy on the dense matrices in float64."""

from __future__ import annotations

from dataclasses import replace
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
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.report import console
from lora_ga_cli.stages.inspect.adapter import part_of, show_changes
from lora_ga_cli.stages.inspect.loaded import load
from lora_ga_cli.stages.inspect.options import InspectOptions
from tests.helpers import Loraga

Matrices = dict[str, np.ndarray]
KIND = "mlp.up_proj"


@pytest.fixture(autouse=True)
def _wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On which no heading of a table is broken into lines, and no number is cut."""
    monkeypatch.setattr(console.out, "_width", 200)


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


def test_how_much_lies_where_an_adapter_began(
    adapters: dict[str, Path], saved_bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns start and gradient, with known A0 and B0 of rank 2 and a known G, of which two directions for each
    rank count."""
    draw = np.random.default_rng(0)
    inspected = load(adapters["one"])
    started, kept, lost = {}, {}, {"start": 0.0, "gradient": 0.0}
    changes = dense(saved_bases["llama"], adapters["one"])[0]
    for name, change in changes.items():
        d_out, d_in = change.shape
        a0, b0 = draw.normal(size=(2, d_in)), draw.normal(size=(d_out, 2))
        u, _, vh = leading(gradient := draw.normal(size=(d_out, d_in)), 4)
        started[name] = torch.tensor(a0).float(), torch.tensor(b0).float()
        kept[name] = truncated_svd(torch.tensor(gradient).float(), 8)
        for part, (columns, rows) in {
            "start": (np.linalg.qr(b0)[0], np.linalg.qr(a0.T)[0]),
            "gradient": (u, vh.T),
        }.items():
            outside = change - columns @ columns.T @ change
            lost[part] += np.linalg.norm(outside - outside @ rows @ rows.T) ** 2
    start = LoraInit(started, dict.fromkeys(started, 1.0))
    found = part_of(replace(inspected, start=start, vectors=2), GradientArtifact(kept, 8, {}, "abc1"))
    capsys.readouterr()
    show_changes(adapters["one"], found, InspectOptions(modules="up_proj"), tmp_path)
    printed = capsys.readouterr().out
    (row,) = rows_of(printed, KIND)
    whole = sum(np.linalg.norm(change) ** 2 for change in changes.values())
    assert row[-2:] == [f"{1 - lost[part] / whole:.1%}" for part in ("start", "gradient")]
    assert next(line for line in printed.splitlines() if "stable" in line).split()[-2:] == ["start", "gradient"]


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


def test_the_advised_ranks_are_the_smallest_that_follow_the_share(loraga: Loraga, tmp_path: Path) -> None:
    """Of gradients of ranks 4, 8 and 2, all directions are needed for almost all of them: two for each rank."""
    generator = torch.Generator().manual_seed(0)
    gradients = {
        name: torch.randn(24, rank, generator=generator) @ torch.randn(rank, 16, generator=generator)
        for name, rank in {"model.layers.0.q": 4, "model.layers.0.up": 8, "model.layers.1.up": 2}.items()
    }
    kept = {name: truncated_svd(item, 12) for name, item in gradients.items()}
    GradientArtifact(kept, 12, {}, "abc1").save(ArtifactStore(tmp_path / "cache").path("abc1"))
    printed = loraga("inspect", "abc1", "--share", "0.999999", "--all")
    assert next(line for line in printed.splitlines() if "of ‖G‖²" in line).split()[-1] == "advised"
    for name, gradient in gradients.items():
        (row,) = rows_of(printed, name)
        assert row[-1] == str(np.linalg.matrix_rank(gradient.numpy()) // 2)
    (row,) = rows_of(loraga("inspect", "abc1", "--share", "0.999999"), "up")
    assert row[-1] == "1–1–4"
