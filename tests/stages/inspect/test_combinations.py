"""Each option of `loraga inspect` with each kind of thing that it looks into: it is used, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.stages.inspect.combinations import GOES_WITH, Subject
from tests.conftest import build_model
from tests.helpers import Loraga

VALUES = {
    "--share": "0.5", "--figures": "pictures", "--base": "somewhere", "--layers": "q", "--modules": "q_proj",
    "--cache-dir": "cache",
}  # fmt: skip
"""Values of the options that take one."""
REFUSED = {
    Subject.recipe: ["--with-base", "--base", "--factors", "--cache-dir"],
    Subject.key: ["--with-base", "--base", "--factors"],
    Subject.gradient: ["--with-base", "--base", "--factors", "--cache-dir"],
    Subject.run: ["--factors", "--cache-dir"],
    Subject.adapter: ["--share", "--factors", "--cache-dir"],
    Subject.pair: ["--share", "--with-base", "--cache-dir"],
}


@pytest.fixture
def targets(tmp_path: Path) -> dict[Subject, list[str]]:
    """The words that name one thing of each kind."""
    factors = {"layers.0.q_proj": truncated_svd(torch.ones(8, 4), 2)}
    GradientArtifact(factors, 2, {}, "abc1").save(ArtifactStore(tmp_path / "cache").path("abc1"))
    model = get_peft_model(build_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained("adapter")
    Path("run").mkdir()
    Path("run/manifest.json").write_text("{}")
    return {
        Subject.recipe: ["recipe=nosuch"],
        Subject.key: ["abc1"],
        Subject.gradient: ["cache/gradients/abc1"],
        Subject.run: ["run"],
        Subject.adapter: ["adapter"],
        Subject.pair: ["adapter", "run"],
    }


def given(options: list[str]) -> list[str]:
    return [word for option in options for word in (option, *([VALUES[option]] if option in VALUES else []))]


def test_every_option_stands_in_the_table() -> None:
    """An option that is added here is refused or used for each kind, and nothing between."""
    assert set(GOES_WITH) == {*VALUES, "--all", "--with-base", "--factors"}
    for subject, refused in REFUSED.items():
        assert {option for option, subjects in GOES_WITH.items() if subject not in subjects} == set(refused)


@pytest.mark.parametrize("subject", list(Subject))
def test_all_options_that_do_nothing_are_refused_at_once(
    loraga: Loraga, targets: dict[Subject, list[str]], subject: Subject
) -> None:
    """All of them are given, so that none can hide another; an option that is used is not among the faults."""
    out = loraga("inspect", *targets[subject], *given(list(GOES_WITH)), code=2)
    assert [option for option in GOES_WITH if f"error  command line: {option} goes with" in out] == [
        option for option in GOES_WITH if option in REFUSED[subject]
    ]
    assert out.count(f"and not with {subject.value}") == len(REFUSED[subject])


@pytest.mark.parametrize("subject", [Subject.run, Subject.adapter, Subject.pair])
def test_a_base_that_is_not_read_is_refused(
    loraga: Loraga, targets: dict[Subject, list[str]], subject: Subject
) -> None:
    out = loraga("inspect", *targets[subject], "--base", "somewhere", "--share", "2", code=2)
    assert "--base does nothing here: no base is read" in out
    assert "--share 2" in out


def test_what_an_environment_variable_or_a_default_sets_is_not_refused(
    loraga: Loraga, targets: dict[Subject, list[str]]
) -> None:
    assert "rank 2" not in loraga("inspect", *targets[Subject.adapter], "--share", "0.9", code=2)
    assert "2 layers" in loraga("inspect", *targets[Subject.adapter])
