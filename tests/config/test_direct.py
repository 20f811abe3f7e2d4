"""Composing one configuration without Hydra's own gives what Hydra gives, whatever was composed or written before."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.direct import composable
from lora_ga_cli.errors import InvalidInput
from tests.config import BASE, jobs, lay_out

QUICKSTART = "recipe=quickstart"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=tiny", "dataset=quickstart"],
        ["recipe=sst2", "method=qlora_ga", "eval=loss"],
        [QUICKSTART, "method=lora", "method=dora", "rank=4", "+rank=5", "++alpha=3"],
        [QUICKSTART, "rank_pattern={q_proj: 3}", "rank_pattern.v_proj=2", "dataset.columns.x=y"],
        [QUICKSTART, "eval=mt_bench", "eval.judge={model: x}", "trainer.max_steps=null", "name='a, b'"],
    ],
)
def test_it_gives_what_hydra_gives(arguments: list[str]) -> None:
    sources, faults = check(arguments)
    assert not faults
    assert composable(sources)
    ((_, config),) = jobs(*arguments)
    assert compose(arguments) == config


@pytest.mark.parametrize("text", ["method: [3]\n", "rank: ${nope}\n", "rank: ${rank}\n"])
def test_it_says_what_hydra_says(text: str) -> None:
    lay_out(Path("own"), {"recipes/mine.yaml": BASE + text})
    with pytest.raises(InvalidInput) as by_hydra:
        jobs("recipe=mine", "--config-dir", "own")
    with pytest.raises(InvalidInput) as direct:
        compose(["recipe=mine", "--config-dir", "own"])
    assert str(direct.value) == str(by_hydra.value)


@pytest.mark.parametrize("option", ["hydra.job.name=x", "name='${method.name}'", "-m", "rank=1,2"])
def test_what_concerns_hydra_is_left_to_it(option: str) -> None:
    sources, _ = check([QUICKSTART, option, "-m"])
    assert not composable(sources)


def test_a_file_that_was_written_again_is_read_again() -> None:
    for rank in (3, 4, 5):
        lay_out(Path("own"), {"recipes/mine.yaml": BASE + f"rank: {rank}\n"})
        assert compose(["recipe=mine", "--config-dir", "own"]).rank == rank


def test_a_configuration_is_not_touched_by_the_next_ones_options() -> None:
    assert compose([QUICKSTART, "rank_pattern={q_proj: 3}", "rank=2"]).rank_pattern == {"q_proj": 3}
    assert compose([QUICKSTART]).rank_pattern == {}


def test_faults_are_told_from_where_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(Path("own"), {"recipes/mine.yaml": BASE + "rnk: 3\n", "recipes/broken.yaml": "a: b: c\n"})
    places = []
    for folder in (".", "own"):
        monkeypatch.chdir(folder)
        own = str(Path("own").resolve() if folder == "." else Path.cwd())
        for recipe in ("mine", "broken"):
            _, faults = check([f"recipe={recipe}", "--config-dir", own])
            places.append(faults[0].where)
    expected = ["own/recipes/mine.yaml:4", "own/recipes/broken.yaml:1", "recipes/mine.yaml:4", "recipes/broken.yaml:1"]
    assert places == expected
