"""Options of one method or task that are given to another, where they would do nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.compose import compose, launch, reconfigured
from lora_ga_cli.config.options import all_options
from lora_ga_cli.config.uses import USES
from tests.config import BASE, jobs, lay_out, refused

QUICKSTART = "recipe=quickstart"
pytestmark = pytest.mark.usefixtures("empty_folder")
LORA = "defaults:\n  - override /model: tiny\n  - override /dataset: quickstart\n  - override /method: lora\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["method=lora", "method.prefix_length=3"],
            "method.prefix_length=3 does nothing with method.adapter=lora "
            "(it is of method.adapter=prefix_embedding or prefix_layer, such as method=prefix_layer)",
        ),
        (
            ["method=lora", "method.gamma=64"],
            "method.gamma=64 does nothing with method.start=kaiming "
            "(it is of method.start=gradient or gaussian, such as method=lora_ga)",
        ),
        (
            ["method=lora_ga_unscaled", "method.gamma=64"],
            "method.gamma=64 does nothing with method.scale=unit (it is of method.scale=stable, such as method=",
        ),
        (
            ["method=lora", "method.adalora.beta1=0.5"],
            "method.adalora.beta1=0.5 does nothing with method.adapter=lora "
            "(it is of method.adapter=adalora, such as method=adalora)",
        ),
        (["method=full", "method.top_layers=3"], "method.top_layers=3 does nothing with method.train=all"),
        (["method=pissa", "method.direction=A2rBr"], "method.direction=A2rBr does nothing with method.start=pissa"),
        (
            ["eval.shots=5"],
            "eval.shots=5 does nothing with eval.task=rows (it is of eval.task=lm_eval, such as eval=lm",
        ),
        (["eval=gsm8k", "eval.pass_at=[1,10]"], "eval.pass_at=[1,10] does nothing with eval.task=gsm8k"),
        (["eval=lm_eval", "eval.tasks=[mmlu]", "eval.temperature=1"], "eval.temperature=1 does nothing with"),
        (["eval=gsm8k", "eval.judge={model: x}"], "eval.judge.model=x does nothing with eval.task=gsm8k"),
    ],
)
def test_what_does_nothing_is_refused_with_its_nearest_use(options: list[str], said: str) -> None:
    (fault,) = refused(QUICKSTART, *options)
    assert fault.startswith(f"command line: {said}")


@pytest.mark.parametrize(
    "options",
    [
        ["method=lora", "method.gamma=16"],  # its default
        ["method=lora_so", "method.gamma=64"],
        ["method=prefix_layer", "method.prefix_length=3"],
        ["method=lora", "method.adapter=adalora", "method.adalora.interval=1"],
        ["eval=humaneval", "eval.samples=10", "eval.temperature=0.8", "eval.pass_at=[1,10]"],
        ["eval=mt_bench", "eval.judge.model=x", "eval.prompt='{question}'"],
    ],
)
def test_what_does_something_is_taken(options: list[str]) -> None:
    compose([QUICKSTART, *options])


def test_a_sweep_may_set_what_one_of_its_methods_uses() -> None:
    found = jobs(QUICKSTART, "-m", "method=lora,lora_ga", "method.gamma=64")
    assert [config.method.gamma for _, config in found] == [64, 64]
    assert len(jobs(QUICKSTART, "-m", "eval=loss,gsm8k", "eval.temperature=0.8")) == 2


def test_a_sweep_of_nothing_but_the_option_is_refused() -> None:
    told: list[str] = []
    with pytest.raises(Exception, match="2 of 2 jobs failed"):
        launch(
            [QUICKSTART, "-m", "method=lora", "method.gamma=32,64"],
            lambda config, title: None,
            lambda error, title: told.append(str(error)),
        )
    assert "method.gamma=32 does nothing" in told[0]


def test_one_of_many_may_set_what_others_use() -> None:
    assert compose([QUICKSTART, "method=lora", "method.gamma=64"], one_of_many=True).method.gamma == 64
    compose([QUICKSTART, "method=lora", "method.gamma=64", "name='x-${rank}'"], one_of_many=True)


def test_a_recipe_is_refused_for_what_its_own_method_does_not_use() -> None:
    lay_out(Path("own"), {"recipes/mine.yaml": LORA + "method: {gamma: 64}\n"})
    (fault,) = refused("recipe=mine", "--config-dir", "own")
    assert fault.startswith("own/recipes/mine.yaml:5: method.gamma=64 does nothing with method.start=kaiming")


def test_a_recipe_may_set_what_the_method_that_replaces_its_own_does_not_use() -> None:
    files = {
        "recipes/base.yaml": BASE + "method: {gamma: 64}\neval: {answer_pattern: (.+)}\n",
        "recipes/mine.yaml": "defaults: [base, {override /method: lora}]\n",
        "recipes/plain.yaml": "defaults: [base]\nmethod: {start: kaiming}\n",
    }
    lay_out(Path("own"), files)
    for options in (["recipe=base", "method=lora", "eval=gsm8k"], ["recipe=mine"], ["recipe=plain"]):
        assert compose([*options, "--config-dir", "own"]).method.start == "kaiming"


def test_a_choice_may_hold_what_it_does_not_use() -> None:
    lay_out(Path("own"), {"method/mine.yaml": "defaults: [lora_ga]\ngamma: 64\nstart: kaiming\n"})
    compose([QUICKSTART, "method=mine", "--config-dir", "own"])


def test_a_finished_run_takes_what_its_new_task_uses() -> None:
    stored = compose([QUICKSTART]).model_dump(mode="json")
    assert reconfigured(stored, ["eval.temperature=0.8", "eval=gsm8k"]).eval.temperature == 0.8
    assert reconfigured({**stored, "eval": {"shots": 5}}, []).eval.shots == 5
    with pytest.raises(Exception, match=r"eval\.temperature=0\.8 does nothing with eval\.task=rows"):
        reconfigured(stored, ["eval.temperature=0.8"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["method=full"], []),
        (["method=lora", "rank=16", "alpha=32"], []),
        (["method=full", "rank=16"], ["rank=16 does nothing with method full"]),
        (["method=bottleneck_adapter", "rank=4", "alpha=3"], ["alpha=3 does nothing with method bottleneck_adapter"]),
        (
            ["method=prefix_layer", "target_modules=[q_proj]"],
            ["target_modules=[q_proj] does nothing with method prefix_layer"],
        ),
    ],
)
def test_what_a_recipe_sets_for_whatever_method_is_noted_and_taken(options: list[str], expected: list[str]) -> None:
    told: list[str] = []
    launch([QUICKSTART, *options], lambda config, title: None, note=told.append)
    assert told == expected


def test_a_sweep_tells_of_it_once() -> None:
    told: list[str] = []
    launch([QUICKSTART, "-m", "method=full", "seed=1,2", "rank=16"], lambda config, title: None, note=told.append)
    assert told == ["rank=16 does nothing with method full"]


def test_every_use_is_of_options_that_exist() -> None:
    options = {".".join(path) for path in all_options()}
    sections = {".".join(path[:-1]) for path in all_options()}
    for name, use in USES.items():
        assert name in options | sections
        assert set(use.conditions) <= options
        group = use.example.split("=")[0]
        config = compose([QUICKSTART, use.example])
        for decider, values in use.conditions.items():
            assert getattr(getattr(config, group), decider.removeprefix(f"{group}.")) in values
