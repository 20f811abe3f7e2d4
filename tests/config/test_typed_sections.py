"""Sections whose options depend on a type: each method and each benchmark has options of its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lora_ga_cli.config.compose import compose, reconfigured
from lora_ga_cli.config.launch import launch
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import InvalidInput, SweepError
from tests.config import BASE, jobs, lay_out, refused
from tests.config.conftest import OtherToyOptions, ToyOptions

pytestmark = pytest.mark.usefixtures("empty_folder", "toy_methods")
QUICKSTART = "recipe=quickstart"
FLAGS = ["--config-dir", "mine"]


@pytest.fixture(autouse=True)
def _choices(empty_folder: Path) -> None:
    files = {
        "method/toy.yaml": "type: toy\nwidth: 3\n",
        "method/other.yaml": "type: other_toy\nschedule: {interval: 7}\n",
        "method/wide_toy.yaml": "defaults: [toy]\nwidth: 8\n",
        "method/turned.yaml": "defaults: [toy]\ntype: other_toy\n",
    }
    lay_out(Path("mine"), files)


def test_the_type_decides_the_class_of_the_section() -> None:
    method = compose([QUICKSTART, "method=toy", *FLAGS]).method
    assert method == ToyOptions(name="toy", width=3)
    assert isinstance(compose([QUICKSTART, "method=other", *FLAGS]).method, OtherToyOptions)


def test_a_choice_may_build_on_another_and_replace_its_type() -> None:
    assert compose([QUICKSTART, "method=wide_toy", *FLAGS]).method == ToyOptions(name="wide_toy", width=8)
    assert compose([QUICKSTART, "method=turned", *FLAGS]).method == OtherToyOptions(name="turned")


def test_another_type_brings_its_own_defaults() -> None:
    config = compose([QUICKSTART, "method=toy", "method.type=other_toy", *FLAGS])
    assert config.method == OtherToyOptions(name="toy", shared=2.0)


@pytest.mark.parametrize("compose_it", [lambda given: compose(given), lambda given: jobs(*given)[0][1]])
def test_options_of_the_type_are_set_like_all_others(compose_it) -> None:  # type: ignore[no-untyped-def]
    config = compose_it(
        [QUICKSTART, "method=other", "method.weights.q_proj=3", "method.schedule={interval: 2}", *FLAGS]
    )
    assert config.method.weights == {"q_proj": 3}
    assert config.method.schedule.interval == 2


def test_a_configuration_survives_storing_copying_and_pickling() -> None:
    config = compose([QUICKSTART, "method=other", *FLAGS])
    assert config.model_dump(mode="json")["method"]["schedule"] == {"interval": 7}
    assert Config.model_validate(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.model_copy(update={"seed": 1}).method == config.method
    assert reconfigured(config.model_dump(mode="json"), ["eval.limit=3"]).method == config.method


def test_the_configuration_is_printed_with_the_options_of_its_type(capsys: pytest.CaptureFixture[str]) -> None:
    launch([QUICKSTART, "method=toy", *FLAGS, "--cfg", "job", "--package", "method"], lambda config, title: None)
    printed = capsys.readouterr().out
    assert printed.splitlines()[1:] == ["type: toy", "name: toy", "learning_rate: null", "width: 3", "shared: 1.0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["method=other", "method.width=3"],
            "command line: no option method.width for method other (method.type=other_toy); method=toy has it",
        ),
        (
            ["method=toy", "method.schedule.interval=3"],
            "command line: no option method.schedule.interval for method toy (method.type=toy); method=other has it",
        ),
        (["method=toy", "method.widht=3"], "command line: no option method.widht (did you mean method.width?)"),
        (["method=toy", "method.width=0"], "command line: method.width=0 should be greater than or equal to 1"),
        (["method=toy", "method.type=oter_toy"], "command line: method.type=oter_toy: no method type 'oter_toy' (did"),
    ],
)
def test_an_option_of_another_type_is_unknown(options: list[str], message: str) -> None:
    (fault,) = refused(QUICKSTART, *options, *FLAGS)
    assert fault.startswith(message)


def test_a_recipe_that_sets_an_option_of_another_type_is_refused_with_its_line() -> None:
    head = BASE + "  - override /method: other\n"
    lay_out(Path("mine"), {"recipes/wrong.yaml": head + "method:\n  width: 3\n"})
    (fault,) = refused("recipe=wrong", *FLAGS)
    assert fault.startswith("mine/recipes/wrong.yaml:6: no option method.width for method other")


def test_a_recipe_may_set_options_of_the_method_that_the_command_line_replaces() -> None:
    head = BASE + "  - override /method: toy\n"
    lay_out(Path("mine"), {"recipes/toys.yaml": head + "method: {width: 2, shared: 5}\n"})
    assert compose(["recipe=toys", *FLAGS]).method == ToyOptions(name="toy", width=2, shared=5)
    assert compose(["recipe=toys", "method=other", *FLAGS]).method.type == "other_toy"


def test_a_sweep_may_set_an_option_of_one_of_its_methods() -> None:
    composed = jobs(QUICKSTART, "-m", "method=toy,other", "method.width=5", *FLAGS)
    assert [config.method.type for _, config in composed] == ["toy", "other_toy"]
    assert getattr(composed[0][1].method, "width", None) == 5


def test_the_class_of_the_method_says_what_does_not_go_together() -> None:
    (fault,) = refused(QUICKSTART, "method=toy", "method.width=9", *FLAGS)
    assert fault == "command line: method.width=9 is larger than rank=8"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("rank_pattern={q_proj: 3}", "rank_pattern does nothing with method toy (method.type=toy)"),
        ("adapter_dropout=0.5", None),
    ],
)
def test_options_for_adapters_that_the_method_does_not_use_are_refused(option: str, message: str | None) -> None:
    if message is None:
        assert compose([QUICKSTART, "method=toy", option, *FLAGS]).adapter_dropout == 0.5
    else:
        assert refused(QUICKSTART, "method=toy", option, *FLAGS) == [f"command line: {message}"]


def test_what_the_command_line_sets_is_noted_where_the_method_does_not_use_it() -> None:
    notes: list[str] = []
    launch([QUICKSTART, "method=other", "rank=16", *FLAGS], lambda config, title: None, note=notes.append)
    assert notes == ["rank=16 does nothing with method other"]


class TestShipped:
    """The methods and tasks that come with loraga."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                ["method=lora", "method.gamma=64"],
                "no option method.gamma for method lora (method.type=lora); method=lora_ga has it",
            ),
            (["method=lora", "method.prefix_length=3"], "no option method.prefix_length for method lora"),
            (["method=adalora", "method.use_rslora=true"], "no option method.use_rslora for method adalora"),
            (["eval.shots=5"], "no option eval.shots for eval.task=rows; eval=lm_eval has it"),
            (
                ["eval=gsm8k", "eval.pass_at=[1,10]"],
                "no option eval.pass_at for eval.task=gsm8k; eval=humaneval has it",
            ),
            (
                ["eval=gsm8k", "eval.judge={model: x}"],
                "no option eval.judge.model for eval.task=gsm8k; eval=mt_bench has it",
            ),
        ],
    )
    def test_an_option_of_another_method_or_task_is_answered_with_one_that_has_it(
        self, options: list[str], message: str
    ) -> None:
        (fault,) = refused(QUICKSTART, *options)
        assert fault.startswith(f"command line: {message}")

    @pytest.mark.parametrize(
        "options",
        [
            ["method=lora_so", "method.gamma=64"],
            ["method=prefix_layer", "method.prefix_length=3"],
            ["eval=humaneval", "eval.samples=10", "eval.temperature=0.8", "eval.pass_at=[1,10]"],
            ["eval=mt_bench", "eval.judge.model=x", "eval.prompt='{question}'"],
        ],
    )
    def test_an_option_of_the_chosen_one_is_taken(self, options: list[str]) -> None:
        compose([QUICKSTART, *options])

    def test_a_sweep_may_set_what_one_of_its_methods_or_tasks_has(self) -> None:
        composed = jobs(QUICKSTART, "-m", "method=lora,lora_ga", "method.gamma=64")
        assert [getattr(config.method, "gamma", None) for _, config in composed] == [None, 64]
        assert len(jobs(QUICKSTART, "-m", "eval=loss,gsm8k", "eval.temperature=0.8")) == 2

    def test_a_sweep_of_methods_that_all_lack_the_option_is_refused(self) -> None:
        messages: list[str] = []
        with pytest.raises(SweepError, match="2 of 2 jobs failed"):
            launch(
                [QUICKSTART, "-m", "method=lora", "method.gamma=32,64"],
                lambda config, title: None,
                lambda error, title: messages.append(str(error)),
            )
        assert "no option method.gamma for method lora" in messages[0]

    def test_one_of_several_configurations_may_be_given_options_of_the_others(self) -> None:
        config = compose([QUICKSTART, "method=lora", "method.gamma=64"], one_of_many=True)
        assert not hasattr(config.method, "gamma")
        compose([QUICKSTART, "method=lora", "method.gamma=64", "name='x-${rank}'"], one_of_many=True)

    def test_a_recipe_may_set_options_of_the_method_and_task_that_are_replaced(self) -> None:
        files = {
            "recipes/base.yaml": BASE + "method: {gamma: 64}\neval: {answer_pattern: (.+)}\n",
            "recipes/changed.yaml": "defaults: [base, {override /method: lora}]\n",
            "recipes/plain.yaml": "defaults: [base]\nmethod: {type: lora}\n",
        }
        lay_out(Path("mine"), files)
        for options in (["recipe=base", "method=lora", "eval=gsm8k"], ["recipe=changed"]):
            assert compose([*options, *FLAGS]).method.type == "lora"
        assert compose(["recipe=plain", "method=lora", *FLAGS]).method.type == "lora"

    def test_the_file_of_a_method_may_keep_options_of_the_type_that_it_replaces(self) -> None:
        lay_out(Path("mine"), {"method/plain.yaml": "defaults: [lora_ga]\ngamma: 64\ntype: lora\n"})
        assert compose([QUICKSTART, "method=plain", *FLAGS]).method.type == "lora"

    def test_a_finished_run_takes_the_options_of_its_new_task(self) -> None:
        stored = compose([QUICKSTART]).model_dump(mode="json")
        config = reconfigured(stored, ["eval.temperature=0.8", "eval=gsm8k"])
        assert getattr(config.eval, "temperature", None) == 0.8
        with pytest.raises(InvalidInput, match=r"no option eval\.temperature for eval\.task=rows; eval=gsm8k has it"):
            reconfigured(stored, ["eval.temperature=0.8"])

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["method=full"], []),
            (["method=lora", "rank=16", "alpha=32"], []),
            (["method=full", "rank=16"], ["rank=16 does nothing with method full"]),
            (
                ["method=bottleneck_adapter", "rank=4", "alpha=3"],
                ["alpha=3 does nothing with method bottleneck_adapter"],
            ),
            (
                ["method=prefix_layer", "target_modules=[q_proj]"],
                ["target_modules=[q_proj] does nothing with method prefix_layer"],
            ),
            (["-m", "method=full", "seed=1,2", "rank=16"], ["rank=16 does nothing with method full"]),
        ],
    )
    def test_an_option_for_adapters_that_a_method_does_not_use_is_noted_once(
        self, options: list[str], expected: list[str]
    ) -> None:
        notes: list[str] = []
        launch([QUICKSTART, *options], lambda config, title: None, note=notes.append)
        assert notes == expected
