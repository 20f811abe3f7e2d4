"""Composition: what wins over what, a user's own folder, and configurations of finished runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lora_ga_cli.config.compose import compose, compose_around, reconfigured
from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.evaluation.judge import JudgeOptions
from tests.config import BASE, jobs, lay_out

QUICKSTART = "recipe=quickstart"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("recipe", sorted(Locations().choices("recipe")))
def test_every_shipped_recipe_composes(recipe: str) -> None:
    assert compose([f"recipe={recipe}"]).recipe == recipe


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in ("method", "gradient", "trainer") for choice in Locations().choices(group)],
)
def test_every_choice_composes_with_the_quickstart(group: str, choice: str) -> None:
    compose([QUICKSTART, f"{group}={choice}"])


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_groups() -> None:
    assert compose([QUICKSTART]).trainer.learning_rate == 1e-3
    assert compose([QUICKSTART, "trainer.learning_rate=0.5"]).trainer.learning_rate == 0.5
    assert compose(["model=tiny", "dataset=quickstart"]).trainer.learning_rate is None


def test_the_last_of_two_overrides_wins() -> None:
    assert compose([QUICKSTART, "rank=4", "rank=16"]).rank == 16


def test_a_users_recipe_may_build_on_a_shipped_one_and_wins_over_it() -> None:
    text = "defaults:\n  - quickstart\n  - override /method: lora\nrank: 5\ntrainer: {learning_rate: 0.5}\n"
    lay_out(Path("mine"), {"recipes/mine.yaml": text})
    config = compose(["recipe=mine", "--config-dir", "mine"])
    assert (config.recipe, config.rank, config.trainer.learning_rate, config.method.name) == ("mine", 5, 0.5, "lora")
    assert config.trainer.max_steps == compose([QUICKSTART]).trainer.max_steps


def test_a_users_folder_wins_over_what_is_shipped() -> None:
    lay_out(Path("mine"), {"recipes/quickstart.yaml": BASE + "rank: 3\n", "method/rslora.yaml": "name: theirs\n"})
    config = compose([QUICKSTART, "--config-dir", "mine"])
    assert (config.rank, config.method.name) == (3, "theirs")


def test_another_composition_is_not_touched_by_an_earlier_ones_folder() -> None:
    lay_out(Path("mine"), {"recipes/quickstart.yaml": BASE + "rank: 3\n"})
    assert compose([QUICKSTART, "--config-dir", "mine"]).rank == 3
    assert compose([QUICKSTART]).rank == 8


def test_options_may_follow_the_configuration_folder() -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE})
    assert compose(["recipe=mine", "--config-dir", "mine", "rank=4"]).rank == 4


def test_a_users_new_choice_works_with_a_shipped_recipe() -> None:
    lay_out(Path("mine"), {"method/mine.yaml": "name: mine\ngamma: 64\n"})
    config = compose([QUICKSTART, "method=mine", "--config-dir", "mine"])
    assert (config.method.name, config.method.gamma) == ("mine", 64)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("gamma: 64\n", "mine"),
        ("defaults: [lora]\nloraplus_lr_ratio: 4\n", "mine"),
        ("defaults: [lora]\nname: theirs\n", "theirs"),
        ("# @package _global_\ntrainer: {epochs: 2}\n", "mine"),
        ("# @package _global_\nmethod: {gamma: 64}\n", "mine"),
    ],
)
def test_a_method_without_a_name_is_called_as_its_file_is(text: str, name: str) -> None:
    lay_out(Path("mine"), {"method/mine.yaml": text})
    assert compose([QUICKSTART, "method=mine", "--config-dir", "mine"]).method.name == name
    ((_, config),) = jobs(QUICKSTART, "method=mine", "--config-dir", "mine")
    assert config.method.name == name


@pytest.mark.parametrize("name", ["v1.5", "my one", "12"])
def test_odd_file_names_are_recipe_names(name: str) -> None:
    lay_out(Path("mine"), {f"recipes/{name}.yaml": BASE + "rank: 3\n"})
    assert compose([f"recipe={name}", "--config-dir", "mine"]).rank == 3


def test_columns_are_renamed_by_a_recipe() -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + "dataset:\n  columns: {question: q}\n"})
    assert compose(["recipe=mine", "--config-dir", "mine"]).dataset.columns == {"question": "q"}


def test_a_template_keeps_its_braces_and_line_ends() -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + 'dataset:\n  prompt: "Q: {question}\\nA: "\n'})
    assert compose(["recipe=mine", "--config-dir", "mine"]).dataset.prompt == "Q: {question}\nA: "


def test_cfg_job_prints_the_configuration_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def task(config: object, title: str) -> None:
        raise AssertionError("ran")

    launch([QUICKSTART, "rank=3", "--cfg", "job"], task)
    printed = capsys.readouterr().out
    assert "rank: 3\n" in printed
    assert "learning_rate: 0.001" in printed
    assert "recipe: quickstart\n" in printed, "as a job gets it: interpolations are filled in"


def test_the_environment_and_the_arguments_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["untouched"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    compose([QUICKSTART])
    assert sys.argv == ["untouched"]
    assert "HYDRA_FULL_ERROR" not in os.environ


class TestReconfigured:
    """``loraga eval RUN eval.limit=5``: a finished run's settings are fixed, how it is scored is not."""

    @pytest.fixture(scope="class")
    def stored(self) -> dict[str, object]:
        return compose([QUICKSTART]).model_dump(mode="json")

    def test_without_changes_it_is_what_was_stored(self, stored: dict[str, object]) -> None:
        assert reconfigured(stored, []).model_dump(mode="json") == stored

    def test_scoring_can_be_changed(self, stored: dict[str, object]) -> None:
        assert reconfigured(stored, ["eval.limit=5", "device=cpu"]).eval.limit == 5
        assert reconfigured(stored, ["eval=loss"]).eval.metrics == ["loss"]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("rank=3", "rank belongs to the run"),
            ("recipe=quickstart", "recipe belongs to the run"),
            ("eval.limit=0", "eval.limit=0"),
            ("eval.limt=5", "did you mean eval.limit?"),
            ("eval=los", "did you mean loss?"),
            ("~eval", "eval"),
            ("eval.metrics=[accuracy]", "accuracy"),
            ("eval.file=${dataset.path}", "interpolations go with a recipe"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, stored: dict[str, object], override: str, message: str) -> None:
        with pytest.raises(InvalidInput, match=r".") as caught:
            reconfigured(stored, [override])
        assert message in str(caught.value)

    def test_an_option_and_a_choice_give_the_same_in_either_order(self, stored: dict[str, object]) -> None:
        for options in (["eval.limit=10", "eval=gsm8k"], ["eval=gsm8k", "eval.limit=10"]):
            assert reconfigured(stored, options).eval.limit == 10

    def test_a_choice_brings_what_it_builds_on(self, stored: dict[str, object]) -> None:
        lay_out(Path("mine"), {"eval/mine.yaml": "defaults: [mt_bench]\nlimit: 3\njudge: {retries: 2}\n"})
        config = reconfigured(stored, ["eval=mine", "--config-dir", "mine", "eval.judge={model: x}"])
        assert (config.eval.task, config.eval.batch_size, config.eval.limit) == ("mt_bench", 8, 3)
        assert config.eval.judge == JudgeOptions(retries=2, model="x")

    def test_a_choice_is_not_filled_in_from_a_run(self, stored: dict[str, object]) -> None:
        lay_out(Path("mine"), {"eval/mine.yaml": "defaults: [loss]\nfile: ${dataset.validation_file}\n"})
        with pytest.raises(InvalidInput, match="eval=mine: interpolations go with a recipe"):
            reconfigured(stored, ["eval=mine", "--config-dir", "mine"])

    def test_a_mapping_changes_what_it_names(self, stored: dict[str, object]) -> None:
        config = reconfigured(stored, ["eval=mt_bench", "eval.judge.retries=2", "eval.judge={model: x}"])
        assert (config.eval.judge.retries, config.eval.judge.model) == (2, "x")


class TestAround:
    """What is scored and is no run has a model, and a data set only if the options choose one."""

    def test_the_model_is_given_unless_an_option_names_it(self) -> None:
        config, has_data = compose_around(["eval=gsm8k"], "org/model")
        assert (config.model.path, config.model.task, has_data) == ("org/model", "causal_lm", False)
        config, has_data = compose_around(["model=tiny", "dataset=quickstart", "model.path=org/other"], "org/model")
        assert (config.model.path, has_data) == ("org/other", True)

    @pytest.mark.parametrize("base", [None, "", "${oc.env:HOME}"])
    def test_a_model_that_nothing_names_is_asked_for(self, base: str | None) -> None:
        with pytest.raises(InvalidInput, match="which base"):
            compose_around(["eval=gsm8k"], base)
