"""`loraga inspect` on gradients: of a recipe, of the cache, of a run; and its advice, as the commands take it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ga_cli.cli.app import main
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.inspection.advice import followed
from lora_ga_cli.lora.links import read_adapter
from lora_ga_cli.stages.inspect.gradient import gradient_part
from lora_ga_cli.stages.inspect.run import read_inspection
from lora_ga_cli.training.run_folder import RunFolder
from tests.helpers import Arguments, Loraga


@pytest.fixture
def stored(tmp_path: Path) -> GradientArtifact:
    """A gradient of two blocks in the cache, and another one whose key begins alike."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{block}.{kind}" for block in (0, 1) for kind in ("q_proj", "up_proj")]
    factors = {name: truncated_svd(torch.randn(24, 16, generator=generator), 8) for name in names}
    info = {"rows": 64, "estimator": "exact", "target_modules": ["q_proj", "up_proj"]}
    artifact = GradientArtifact(factors, 8, info, "abc1")
    for key in ("abc1", "abd2"):
        artifact.save(ArtifactStore(tmp_path / "cache").path(key))
    return artifact


def json_of(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_the_advice_for_a_recipe_is_taken_by_train(
    loraga: Loraga, arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed override trains exactly these ranks, which follow the share, and the run tells of its gradient."""
    recipe = arguments("llama", "gradient.capacity=32")
    found = json_of(capsys, "inspect", *recipe, "--share", "0.97")
    advice = found["gradient"]["advice"]
    assert advice["uniform"]["memory_bytes"] > advice["uniform"]["parameters"] * 4
    options = shlex.split(advice["override"])
    assert options[0] == f"rank={advice['rank']}"
    rest = [item for item in recipe if item != "rank=4"]
    assert loraga("train", *rest, *options, "trainer.max_steps=1", "name=advised")
    run = RunFolder(Path("runs/advised"))
    saved = {name.removeprefix("base_model.model."): change for name, change in read_adapter(run.path).items()}
    ranks = {name: change.rank // 2 for name, change in saved.items()}  # the initial factors are saved too
    assert len(set(ranks.values())) > 1
    assert (
        sum(rank * sum(found["gradient"]["layers"][name]["shape"]) for name, rank in ranks.items())
        == (advice["parameters"])
    )
    artifact = GradientArtifact.load(ArtifactStore(Path("cache")).path(found["key"]))
    assert followed(artifact.factors, ranks, 2) >= 0.97
    assert run.manifest["gradient"] == found["key"]
    inspected = json_of(capsys, "inspect", "runs/advised")
    assert read_inspection(run) == {name: inspected[name] for name in ("format", "of", "gradient", "adapter")}
    assert inspected["gradient"]["layers"] == found["gradient"]["layers"]
    assert Path("runs/advised/inspect/energy.png").is_file()
    (run.path / "adapter_model.safetensors").write_bytes(b"another")
    assert read_inspection(run) is None


def test_a_stored_gradient_is_named_by_its_key_or_folder(loraga: Loraga, stored: GradientArtifact) -> None:
    printed = loraga("inspect", "abc", "--share", "0.5")
    assert "abc1: 64 rows, 4 layers, 8 singular vectors of each are kept (exact)" in printed
    lines = [line.split() for line in printed.splitlines() if line.strip()]
    assert [line[1] for line in lines if line[0] in ("q_proj", "up_proj", "model.layers.0", "model.layers.1")] == 4 * [
        "2"
    ]
    assert "50% of ‖G‖² in these 4 layers together: rank=" in printed
    every = loraga("inspect", "cache/gradients/abc1", "--all", "--figures", "pictures")
    assert "model.layers.1.up_proj   24×16" in every.replace("\u2026", "")
    assert "the rank for 90% is not known" in every
    assert Path("pictures/energy.png").is_file()
    one = loraga("inspect", "abc", "--modules", "q_proj", "--layers", r"layers\.1")
    assert "1 layer, 8 singular" in one
    assert "up_proj" not in one


def test_what_was_not_kept_is_said_with_what_helps(
    stored: GradientArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "inspect", "abc", "--share", "0.99")["gradient"]["advice"]
    assert found["uniform"] is None
    assert (found["rank"], found["rank_pattern"], found["override"]) == (None, {}, None)
    assert "the kept 8 singular vectors of each layer have" in found["note"]
    assert "gradient.capacity=16" in found["note"]  # all there are


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "no gradient in"),
        (["ab"], "2 gradients have a key that begins so"),
        (["abc", "rank=3"], "rank=3: options of a recipe do not go with abc"),
        (["abc", "--share", "1.5"], "--share 1.5"),
        (["abc", "--layers", "("], "--layers: '(' is no regular expression"),
        (["abc", "--modules", "nosuch"], "no layer of this gradient has such a name"),
        (["abc", "abd"], "a gradient; two runs or adapters can be compared"),
        (["abc", "--shares", "3"], "no option --shares (did you mean --share?)"),
        (["."], "no run, adapter or gradient"),
        (["a", "b", "c"], "3 targets"),
    ],
)
def test_what_cannot_be_inspected_is_a_fault(
    loraga: Loraga, stored: GradientArtifact, words: list[str], said: str
) -> None:
    assert said in loraga("inspect", *words, code=2)


def test_methods_that_begin_without_the_gradient_are_told_so(loraga: Loraga, arguments: Arguments) -> None:
    printed = loraga("inspect", *arguments("llama", "method=lora"))
    assert "in the first N singular directions" in printed
    assert "its first step follows about N / d_in" in printed


def test_experts_of_one_parameter_get_one_rank() -> None:
    """`rank_pattern` names parameters, and the experts in one have its rank; a layer whose name is a number has its
    own."""
    generator = torch.Generator().manual_seed(0)
    names = ["h.0.experts.up.0", "h.0.experts.up.1", "h.0.q", "net.0", "net.2"]
    factors = {
        name: truncated_svd(torch.randn(24, 16, generator=generator) * 10.0**-number, 8)
        for number, name in enumerate(names)
    }
    info = {"target_modules": ["h.0.q", "net.0", "net.2"]}
    advice = gradient_part(GradientArtifact(factors, 8, info), share=0.5)["advice"]
    assert advice["rank_pattern"] == {"experts.up": advice["uniform"]["rank"]}
    costs = 40 * (2 * advice["uniform"]["rank"] + 3 * advice["rank"])
    assert advice["parameters"] == costs
