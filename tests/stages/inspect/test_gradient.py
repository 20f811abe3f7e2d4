"""`loraga inspect` on gradients: of a recipe, of the cache, of a run; and its advice, as the commands take it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ga_cli.cli.app import main
from lora_ga_cli.config.compose import compose
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.inspection.advice import followed
from lora_ga_cli.lora.links import read_adapter
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.stages.inspect.again import with_capacity, words_again
from lora_ga_cli.stages.inspect.gradient import gradient_part
from lora_ga_cli.stages.inspect.run import read_inspection
from lora_ga_cli.training.run_folder import RunFolder
from tests.conftest import build_model
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


@pytest.mark.parametrize("before", [[], ["rank_pattern={q_proj: 3}"]])
def test_advice_for_some_layers_is_for_an_adapter_on_these_layers(
    loraga: Loraga, arguments: Arguments, capsys: pytest.CaptureFixture[str], before: list[str]
) -> None:
    """What is pasted adapts the selected layers alone, with the advised ranks, also where the recipe has a pattern."""
    recipe = [*arguments("llama", "gradient.capacity=32"), *before]
    selection = ["--layers", r"layers\.1\.", "--modules", "q_proj,down_proj,up_proj"]
    found = json_of(capsys, "inspect", *recipe, *selection, "--share", "0.98")["gradient"]
    assert len(found["layers"]) == 3
    advice = found["advice"]
    resolved = []
    for part in (advice, advice["uniform"]):
        config = compose([*recipe, *shlex.split(part["override"])])
        method = method_of(config)
        resolved.append(method.gradient_ranks(method.targets(build_model("llama"))))
        assert part["memory_bytes"] > 0
    assert set(resolved[0]) == set(resolved[1]) == set(found["layers"])
    costs = {name: sum(layer["shape"]) for name, layer in found["layers"].items()}
    assert sum(rank * costs[name] for name, rank in resolved[0].items()) == advice["parameters"]
    assert len(set(resolved[0].values())) > 1
    assert set(resolved[1].values()) == {advice["uniform"]["rank"]}


def test_the_printed_line_is_the_one_that_is_pasted(loraga: Loraga, stored: GradientArtifact) -> None:
    printed = loraga("inspect", "abc", "--modules", "q_proj", "--share", "0.5")
    assert "an adapter on these layers alone, to paste behind loraga train" in printed
    assert "target_modules=[model.layers.0.q_proj,model.layers.1.q_proj]" in printed
    assert "target_modules" not in loraga("inspect", "abc", "--share", "0.5")


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
    assert Path("inspect-abc1/energy.png").is_file()
    assert "figure  inspect-abc1/energy.png" in one
    assert not list(Path("cache").rglob("*.png"))
    assert "up_proj" not in one


def test_what_was_not_kept_is_said_with_what_helps(
    stored: GradientArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "inspect", "abc", "--share", "0.99")["gradient"]["advice"]
    assert found["uniform"] is None
    assert (found["rank"], found["rank_pattern"], found["override"]) == (None, {}, None)
    assert "the kept 8 singular vectors of each layer have" in found["note"]
    assert "gradient.capacity=16" in found["note"]  # all there are


def test_the_command_that_keeps_more_is_pasted(loraga: Loraga, arguments: Arguments) -> None:
    recipe = arguments("llama", "gradient.capacity=8")
    said = loraga("inspect", *recipe, "--share", "0.9999")
    line = next(item for item in said.splitlines() if "more vectors tell: loraga " in item)
    words = shlex.split(line.partition("more vectors tell: loraga ")[2])
    assert words[0] == "inspect"
    assert "gradient.capacity=8" not in words
    assert "is not known" not in loraga(*words)


def test_a_gradient_knows_the_command_that_made_it() -> None:
    options = ["recipe=quickstart", "rank=4"]
    for words in (
        ["/usr/bin/loraga", "train", *options],
        ["python", "-m", "lora_ga_cli", "inspect", *options, "--json"],
    ):
        again = words_again({"command": words})
        assert again == ("inspect", *options)
    assert with_capacity(again, 16) == "loraga inspect recipe=quickstart rank=4 gradient.capacity=16"
    others: list[list[str]] = [["pytest"], ["loraga", "reproduce", "x"], ["loraga", "train", "-m", "rank=1,2"], []]
    assert [words_again({"command": words}) for words in others] == [()] * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch"], "no gradient in"),
        (["ab"], "2 gradients have a key that begins so"),
        (["abc", "rank=3"], "rank=3: options of a recipe do not go with abc"),
        (["abc", "--share", "1.5"], "--share 1.5"),
        (["abc", "--layers", "("], "--layers: '(' is no regular expression"),
        (
            ["abc", "--modules", "nosuch"],
            "--modules nosuch: no layer of the gradient ends with it (a full name is model",
        ),
        (["abc", "--modules", "q_proj,up_pro"], "did you mean up_proj, as in model.layers.0.up_proj?"),
        (["abc", "--layers", "layers.0.q_prj"], "did you mean model.layers.0.q_proj?"),
        (
            ["abc", "--layers", "up", "--modules", "q_proj"],
            "--layers up --modules q_proj: no layer of",
        ),
        (["abc", "--modules", "q_proj,"], "--modules 'q_proj,' has an empty entry"),
        (["abc", "--modules", ""], "--modules '' has an empty entry"),
        (["abc", "--layers", ""], "--layers is empty"),
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


def test_experts_of_which_some_are_selected_get_no_options() -> None:
    """They have an adapter together. Selected together, they are named as a parameter."""
    generator = torch.Generator().manual_seed(0)
    names = ["h.0.experts.up.0", "h.0.experts.up.1", "h.0.q"]
    factors = {name: truncated_svd(torch.randn(24, 16, generator=generator), 16) for name in names}
    artifact = GradientArtifact(factors, 16, {"target_modules": ["h.0.q"]})

    def advised(*chosen: str) -> dict[str, Any]:
        found: dict[str, Any] = gradient_part(artifact, share=0.5, selected={name: factors[name] for name in chosen})[
            "advice"
        ]
        return found

    some = advised(names[0], names[2])
    assert some["override"] is some["uniform"]["override"] is None
    assert "h.0.experts.up.1 is not selected" in some["note"]
    both = advised(*names[:2])
    assert shlex.split(both["override"])[1:] == ["target_modules=[]", "target_parameters=[h.0.experts.up]"]
    assert shlex.split(advised(names[2])["override"])[1:] == ["target_modules=[h.0.q]", "target_parameters=[]"]
