"""An option that is given wins over a default of the chosen file that does not go with it, and a line says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput
from tests.config import lay_out

ROWS = ["model=tiny", "dataset.train_file=rows.jsonl"]


def composed(*overrides: str) -> tuple[Config, list[str]]:
    """The configuration, and the lines for the user."""
    configs: list[Config] = []
    notes: list[str] = []
    launch(overrides, lambda config, _: configs.append(config), note=notes.append)
    assert [compose([item for item in overrides if item != "-m"])] == configs
    return configs[0], notes


def test_a_validation_file_replaces_the_fraction_that_the_data_set_holds_out() -> None:
    config, (note,) = composed(*ROWS, "dataset.validation_file=other.jsonl")
    assert config.dataset.validation_fraction == 0
    assert note.startswith("dataset.validation_file=other.jsonl replaces dataset.validation_fraction=0.05 (")
    assert note.endswith("jsonl.yaml:4)")


@pytest.mark.parametrize(
    ("overrides", "switched_off"),
    [
        (
            ["dataset=gsm8k", "dataset.train_file=a.jsonl"],
            ["dataset.path", "dataset.subset", "dataset.validation_split"],
        ),
        (["dataset=gsm8k", "dataset.validation_file=a.jsonl"], ["dataset.validation_split"]),
        (["dataset=quickstart", "dataset.validation_fraction=0.1"], ["dataset.validation_file"]),
        (["dataset=quickstart", "dataset.path=a/b", "dataset.validation_split=x"], ["dataset.train_file"]),
        (
            ["dataset=quickstart", "dataset.train_file=a.jsonl", "dataset.messages=x"],
            ["dataset.prompt", "dataset.answer"],
        ),
        (["dataset=gsm8k", "dataset.format=alpaca"], ["dataset.prompt", "dataset.answer"]),
        (["dataset=quickstart", "method=qlora", "model.quantization=int8"], ["model.double_quantization"]),
        (["dataset=quickstart", "method=apollo", "trainer.optimizer=adamw"], ["trainer.optimizer_options"]),
        (["dataset=quickstart", "method=cola", "method.link_steps=5"], ["method.links"]),
        (["dataset=quickstart", "method=rac_lora", "method.links=5"], ["method.link_steps"]),
        (["dataset=quickstart", "method=cola", "method.link_schedule=link"], ["method.link_warmup"]),
        (["dataset=quickstart", "method=hetero_lora", "method.rank_budget=5000"], ["method.budget_share"]),
        (["dataset=quickstart", "method=lora_allocated", "method.rank_allocation=uniform"], []),
        (["recipe=quickstart", "trainer.epochs=1"], ["trainer.max_steps"]),
    ],
)
def test_what_a_given_option_excludes_gets_its_default(overrides: list[str], switched_off: list[str]) -> None:
    given = [] if any(item.startswith("recipe") for item in overrides) else ["model=tiny"]
    config, notes = composed(*given, *overrides)
    text = " ".join(notes)
    for option in switched_off:
        assert f"{option}=" in text, option
        value: Any = config
        for name in option.split("."):
            value = getattr(value, name)
        assert value in (None, False, 0, 1.0, {}), option
    if not switched_off:
        assert notes == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset.validation_fraction=0"],
        ["dataset=quickstart", "dataset.validation_fraction=0"],
        ["dataset=quickstart", "method=apollo", "trainer.optimizer=apollo"],
        ["dataset=quickstart", "method=qlora", "model.quantization=nf4"],
    ],
)
def test_an_option_that_excludes_nothing_leaves_the_file_as_it_is(overrides: list[str]) -> None:
    assert composed(*ROWS, *overrides)[1] == []


def test_options_that_are_given_together_are_a_fault() -> None:
    with pytest.raises(InvalidInput, match=r"dataset\.validation_fraction goes without"):
        compose([*ROWS, "dataset.validation_file=a.jsonl", "dataset.validation_fraction=0.1"])


def test_a_recipe_wins_over_the_file_that_it_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = (
        "defaults: [{override /model: tiny}, {override /dataset: quickstart}]\ndataset: {validation_fraction: 0.1}\n"
    )
    lay_out(Path("mine"), {"recipes/held_out.yaml": recipe})
    arguments = ["recipe=held_out", "--config-dir", "mine"]
    assert check(arguments)[1] == []
    assert compose(arguments).dataset.validation_file is None


def test_each_job_of_a_sweep_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    configs: list[Config] = []
    notes: list[str] = []
    swept = "dataset.validation_file=null,a.jsonl"
    launch(["-m", *ROWS, swept], lambda config, _: configs.append(config), note=notes.append)
    assert [config.dataset.validation_fraction for config in configs] == [0.05, 0]
    assert len(notes) == 1


def test_of_two_lengths_in_one_place_a_line_says_which_counts() -> None:
    config, (note,) = composed("recipe=quickstart", "trainer.epochs=2", "trainer.max_steps=5")
    assert config.trainer.max_steps == 5
    assert note == "trainer.epochs=2 does nothing with trainer.max_steps=5, which counts (command line)"


def test_steps_that_replace_epochs_of_a_recipe_need_no_line() -> None:
    lay_out(Path("mine"), {"recipes/long.yaml": "defaults: [quickstart]\ntrainer:\n  epochs: 3\n"})
    _, notes = composed("recipe=long", "trainer.max_steps=5", "--config-dir", "mine")
    assert notes == []
