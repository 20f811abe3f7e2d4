"""Chains of LoRAs as runs: one link is LoRA to the bit, short links are cheap, and their optimizer's state goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from lora_ga_cli.lora.links import LowRank, read_adapter
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.stages import initialize
from lora_ga_cli.stages.initialize import LinkBases
from lora_ga_cli.stages.inputs import Inputs
from lora_ga_cli.training.run_folder import LinkFolder
from tests.conftest import build_batch
from tests.helpers import Arguments, Loraga, add_links, after, killed, only_run, points, timeless_points

WEIGHTS = "adapter_model.safetensors"


def equal(one: Path, other: Path) -> bool:
    """Whether two saved adapters have the same tensors, to the bit."""
    tensors, others = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return set(tensors) == set(others) and all(torch.equal(item, others[name]) for name, item in tensors.items())


def test_one_link_is_lora_to_the_bit(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "method=lora", "output_dir=lora"))
    loraga("train", *arguments("llama", "method=cola", "method.links=1", "output_dir=chain"))
    assert equal(only_run("lora"), only_run("chain"))
    assert timeless_points(only_run("lora")) == timeless_points(only_run("chain"))


def test_many_short_links_of_few_layers(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """XGBLoRA with links of one step: a base is read once to train and once to check the result, a link prints one line
    and keeps no checkpoint, PEFT alone loads the sum, and layers that were never drawn stay as they are to the bit."""
    loaded: list[int] = []
    load_model = Inputs.load_model

    def counted(self: Inputs, **options: Any) -> Any:
        loaded.append(1)
        return load_model(self, **options)

    monkeypatch.setattr(Inputs, "load_model", counted)
    options = ["method=xgb_lora", "method.link_steps=1", "method.layers_per_link=2", "trainer.logging_steps=10"]
    out = loraga("train", *arguments("llama", *options))
    run = only_run()
    assert len(loaded) == 2
    assert [line for line in out.splitlines() if "link " in line] == ["     init  link 1 of 6"]
    assert [item["step"] for item in points(run) if "loss" in item] == [1, 2, 3, 4, 5, 6]
    assert [item["step"] for item in points(run) if "eval_loss" in item] == [2, 4, 6]
    assert not list((run / "links").rglob("checkpoint-*"))

    changes = [read_adapter(run / "links" / str(number) / "adapter") for number in range(6)]
    assert [len(change) for change in changes] == [2] * 6
    drawn = {name for change in changes for name in change}
    base = AutoModelForCausalLM.from_pretrained(saved_bases["llama"], dtype=torch.float32).eval()
    with_links = AutoModelForCausalLM.from_pretrained(saved_bases["llama"], dtype=torch.float32).eval()
    add_links(with_links, changes)
    before, batch = find_targets(base), build_batch("llama")
    for name, target in find_targets(with_links).items():
        assert torch.equal(target.weight, before[name].weight) == (name not in drawn)
    with torch.no_grad():
        expected, untrained = with_links(**batch).logits, base(**batch).logits
        alone = PeftModel.from_pretrained(base, run).eval()(**batch).logits
    assert float((alone - expected).norm() / expected.norm()) < 1e-5
    assert float((untrained - expected).norm() / expected.norm()) > 1e-3
    described = json.loads((run / "adapter_config.json").read_text())
    assert set(described["target_modules"]) == drawn


def between_two_checkpoints_of_the_last_link(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training.trainer import LoragaTrainer

    patch.setattr(LoragaTrainer, "_pass", after(23, LoragaTrainer._pass))  # two micro-batches a step


def after_the_state_of_the_first_link_is_saved(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.stages import train_chain

    patch.setattr(train_chain, "save_state", after(1, train_chain.save_state))


def after_the_second_link_has_begun(patch: pytest.MonkeyPatch) -> None:
    from lora_ga_cli.training import callbacks

    patch.setattr(callbacks, "install_state", after(1, callbacks.install_state))


STATES = {
    "rotate": ["method=rac_lora", "method.link_steps=4"],
    "keep": ["method=cola", "method.links=3"],
    "prune": ["method=relora", "method.links=3", "method.pruned_share=0.5"],
}


@pytest.mark.parametrize(
    ("state", "point"),
    [
        ("rotate", between_two_checkpoints_of_the_last_link),
        pytest.param("keep", after_the_state_of_the_first_link_is_saved, marks=pytest.mark.slow),
        pytest.param("keep", after_the_second_link_has_begun, marks=pytest.mark.slow),
        pytest.param("prune", between_two_checkpoints_of_the_last_link, marks=pytest.mark.slow),
    ],
)
def test_a_state_that_goes_on_is_resumed_to_the_bit(
    loraga: Loraga, arguments: Arguments, state: str, point: Callable[[pytest.MonkeyPatch], None]
) -> None:
    options = [*STATES[state], f"method.link_state={state}", "trainer.max_steps=12"]
    loraga("train", *arguments("llama", *options, "output_dir=uninterrupted"))
    killed(arguments("llama", *options), point)
    out = loraga("train", *arguments("llama", *options))
    assert equal(only_run("uninterrupted"), only_run())
    assert timeless_points(only_run("uninterrupted")) == timeless_points(only_run())
    if point == between_two_checkpoints_of_the_last_link:
        assert "resuming after step 10" in out
    links = only_run() / "links"
    steps = [load_file(links / str(number) / "optimizer.safetensors") for number in (0, 1)]
    counted = [{float(item) for name, item in tensors.items() if name.endswith("|step")} for tensors in steps]
    assert counted == [{4.0}, {8.0}]  # the count goes on
    assert not (links / "2" / "optimizer.safetensors").exists()


@pytest.mark.parametrize("largest", [0, 2**30])
def test_sums_of_links_are_kept_where_the_base_is(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """And the base of the next link is the same."""
    factors = {str(number): torch.arange(1.0, 5) / (number + 3) for number in range(3)}
    monkeypatch.setattr(initialize, "KEPT_BYTES", largest)
    monkeypatch.setattr(initialize, "load_base", lambda inputs, run: nn.ModuleDict({"layer": constant_layer()}))
    monkeypatch.setattr(initialize, "check_link", lambda folder: None)
    monkeypatch.setattr(
        initialize,
        "read_adapter",
        lambda path: {"layer": LowRank(factors[path.parent.name][:, None], factors[path.parent.name][None])},
    )
    bases = LinkBases(SimpleNamespace(config=SimpleNamespace(seed=0)), None)  # type: ignore[arg-type]
    folders = [LinkFolder(Path(name)) for name in factors]
    for count in range(len(folders) + 1):
        base: Any = bases.base(folders[:count], again=count < len(folders))
        exact = sum((item.double().outer(item.double()) for item in list(factors.values())[:count]), torch.ones(4, 4))
        assert torch.equal(base["layer"].weight, exact.float())
        if count < len(folders):
            assert bases._total.keep_products == (largest > 0)


def constant_layer() -> nn.Linear:
    layer = nn.Linear(4, 4, bias=False)
    nn.init.ones_(layer.weight)
    return layer


@pytest.mark.slow
def test_a_base_that_is_read_for_every_link_gives_the_same_run(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a base does that is too large to have twice in memory."""
    options = ["method=rac_lora", "method.link_steps=2"]
    loraga("train", *arguments("llama", *options, "output_dir=kept"))
    monkeypatch.setattr(initialize, "KEPT_BYTES", 0)
    loraga("train", *arguments("llama", *options))
    assert equal(only_run("kept"), only_run())


@pytest.mark.slow
def test_a_rate_that_is_almost_zero_changes_nothing(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "method=cola", "trainer.learning_rate=1e-30"))
    assert all(float(item.product().abs().max()) < 1e-28 for item in read_adapter(only_run()).values())


@pytest.mark.slow
def test_ranks_that_fall_are_one_sum(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "method=cola", "method.link_ranks=[4, 2, 1]"))
    assert json.loads((only_run() / "manifest.json").read_text())["adapter_rank"] == 4 + 2 + 1
