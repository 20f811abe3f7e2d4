"""Runs whose ranks the gradient or the training decides: stored, resumed to the bit, shown, and summed over links."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ga_cli.lora.links import read_adapter
from tests.helpers import Arguments, Loraga, between_two_checkpoints, killed, only_run

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.slow
def test_gates_that_are_pruned_resume_to_the_bit(loraga: Loraga, arguments: Arguments) -> None:
    options = ["method=sora", "method.sparsity=20"]
    printed = loraga("train", *arguments("llama", *options, "output_dir=uninterrupted"))
    assert "gates are zero" in printed
    killed(arguments("llama", *options), between_two_checkpoints)
    assert "resuming after step 2" in loraga("train", *arguments("llama", *options))
    expected, found = (load_file(run / WEIGHTS) for run in (only_run("uninterrupted"), only_run()))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    ranks = {change.rank for change in read_adapter(only_run()).values()}
    assert min(ranks) < 4
    assert json.loads((only_run() / "manifest.json").read_text())["adapter_rank"] == max(ranks)


@pytest.mark.slow
def test_ranks_are_stored_with_the_run(loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAGA_CACHE", str(Path.cwd() / "cache"))
    options = arguments("llama", "method=lora_ga", "method.rank_allocation=energy")
    printed = loraga("init", *options)
    assert "serves ranks up to 16" in printed
    assert "median" in printed
    shutil.rmtree("cache")
    printed = loraga("train", *options)
    assert "initialization restored" in printed
    assert "estimated" not in printed
    ranks = {change.rank for change in read_adapter(only_run()).values()}
    assert len(ranks) > 1


@pytest.mark.slow
def test_each_link_of_a_chain_has_the_ranks_of_its_own_gradient(loraga: Loraga, arguments: Arguments) -> None:
    options = ["method=chain_lora_ga", "method.links=2", "method.rank_allocation=energy", "method.budget_share=0.5"]
    loraga("train", *arguments("llama", *options))
    of_links = [read_adapter(only_run() / "links" / index / "adapter") for index in ("0", "1")]
    total = read_adapter(only_run())
    for name, change in total.items():
        assert change.rank == sum(link[name].rank for link in of_links if name in link)
    assert len({change.rank for change in total.values()}) > 1
