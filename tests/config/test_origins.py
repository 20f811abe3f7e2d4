"""loraga composes a configuration itself: it gives what Hydra gives, whatever was composed or written before."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.hydra_store import stored
from lora_ga_cli.config.locations import PRIMARY
from tests.config import BASE, lay_out

QUICKSTART = "recipe=quickstart"
FLAGS = ["--config-dir", "mine"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _recipes(_in_an_empty_folder: None) -> None:
    first = "defaults: [{override /model: tiny}, {override /dataset: quickstart}, {override /method: lora}]\n"
    files = {
        "recipes/first.yaml": first + "rank: 2\ntrainer: {epochs: 2}\ntarget_modules: [q_proj]\n",
        "recipes/second.yaml": "defaults: [{override /method: dora}, {override /eval: accuracy}]\nrank: 3\nalpha: 5\n",
        "recipes/on_top.yaml": "defaults: [first, second]\nalpha: 7\ntarget_modules: [v_proj, k_proj]\n",
        "recipes/below.yaml": "defaults: [_self_, second, first, {override /eval: loss}]\nrank: 9\nalpha: ${rank}\n",
        "recipes/asks.yaml": "defaults: [first]\nmodel:\n  path: ???\nname: ${method.name}\n",
        "method/built.yaml": "defaults: [lora_ga]\ngamma: 4\n",
    }
    lay_out(Path("mine"), files)


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=tiny", "dataset=quickstart"],
        ["recipe=sst2", "method=qlora_ga", "eval=loss"],
        [QUICKSTART, "method=lora", "method=dora", "rank=4", "+rank=5", "++alpha=3"],
        [QUICKSTART, "rank_pattern={q_proj: 3}", "rank_pattern.v_proj=2", "dataset.columns.x=y"],
        [QUICKSTART, "eval=mt_bench", "eval.judge={model: x}", "trainer.max_steps=null", "name='a, b'"],
        ["recipe=on_top", "alpha=${rank}"],
        ["recipe=below", "method=built", "method.gamma=${alpha}"],
        ["recipe=asks", "model.path=x"],
    ],
)
def test_the_composed_configuration_is_the_one_that_hydra_composes(arguments: list[str]) -> None:
    sources, faults = check([*arguments, *FLAGS])
    assert not faults
    assert not sources.needs_hydra
    with stored(sources), hydra.initialize(version_base="1.3", config_path=None):
        by_hydra = hydra.compose(PRIMARY, sources.arguments)
    by_hydra.recipe = sources.values()["recipe"]  # Hydra's application fills it in
    assert sources.values() == OmegaConf.to_container(by_hydra)


@pytest.mark.parametrize("option", ["hydra.job.name=x", "name='${now:%d}'", "-m", "--cfg=job"])
def test_what_concerns_hydra_is_given_to_it(option: str) -> None:
    sources, _ = check([QUICKSTART, option])
    assert sources.needs_hydra


def test_a_file_that_was_written_again_is_read_again() -> None:
    for rank in (3, 4, 5):
        lay_out(Path("mine"), {"recipes/mine.yaml": BASE + f"rank: {rank}\n"})
        assert compose(["recipe=mine", "--config-dir", "mine"]).rank == rank


def test_a_configuration_is_not_touched_by_the_next_ones_options() -> None:
    assert compose([QUICKSTART, "rank_pattern={q_proj: 3}", "rank=2"]).rank_pattern == {"q_proj": 3}
    assert compose([QUICKSTART]).rank_pattern == {}


def test_paths_in_faults_are_relative_to_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + "rnk: 3\n", "recipes/broken.yaml": "a: b: c\n"})
    places = []
    for folder in (".", "mine"):
        monkeypatch.chdir(folder)
        user_dir = str(Path("mine").resolve() if folder == "." else Path.cwd())
        for recipe in ("mine", "broken"):
            _, faults = check([f"recipe={recipe}", "--config-dir", user_dir])
            places.append(faults[0].where)
    expected = [
        "mine/recipes/mine.yaml:4",
        "mine/recipes/broken.yaml:1",
        "recipes/mine.yaml:4",
        "recipes/broken.yaml:1",
    ]
    assert places == expected
