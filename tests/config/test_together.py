"""One kind of fault does not hide another: what can be known is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config import BASE, lay_out, refused

UNKNOWN = ("rnk=4", "no option rnk")
WRONG = ("trainer.learning_rate=fast", "trainer.learning_rate=fast should be")
ALONE = ("trainer.gradient_checkpointing_every=2", "trainer.gradient_checkpointing_every does nothing without")
"""An option that does nothing without another one."""
SECTION = ("dataset.shuffle_buffer=5", "dataset.shuffle_buffer does nothing without dataset.streaming")
"""The same, of options within one section."""
pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.parametrize(
    "given",
    [
        [UNKNOWN, WRONG, ALONE, SECTION],
        [UNKNOWN, ALONE],
        [UNKNOWN, SECTION, ALONE],
        [WRONG, SECTION],
        [SECTION, ALONE],
    ],
    ids=lambda given: " ".join(option for option, _ in given),
)
def test_faults_of_names_values_and_combinations_come_together(given: list[tuple[str, str]]) -> None:
    faults = refused("recipe=quickstart", *(option for option, _ in given))
    assert len(faults) == len(given)
    for _, text in given:
        assert any(text in fault for fault in faults)


def test_a_file_and_the_command_line_are_looked_at_together() -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + "rnk: 4\ntrainer:\n  batch_size: none\n  optimiser: x\n"})
    faults = refused("recipe=mine", "--config-dir", "mine", ALONE[0])
    assert [fault.split(": ")[0] for fault in faults] == [
        "mine/recipes/mine.yaml:4",
        "mine/recipes/mine.yaml:6",
        "mine/recipes/mine.yaml:7",
        "command line",
    ]


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (["trainer.save_steps=x", "trainer.eval_steps=5", "trainer.load_best=true"], 1),  # they may be equal
        (["trainer.sav_steps=5", "trainer.eval_steps=5", "trainer.load_best=true"], 1),  # it is the nearest name
        (["gradient.passes=2", "gradient.estimator=exct"], 1),
        (["dataset.validation_fracton=0.1", "trainer.load_best=true", "dataset.validation_file=null"], 1),
    ],
    ids=str,
)
def test_what_a_wrong_option_may_explain_is_not_reported(given: list[str], count: int) -> None:
    assert len(refused("recipe=quickstart", *given)) == count


@pytest.mark.parametrize("wrong", ["recipe=quickstrt", "model=tyny", "recipe=quickstart model=tyny"])
def test_where_a_file_is_not_found_nothing_is_said_about_what_it_would_set(wrong: str) -> None:
    assert len(refused(*wrong.split(), ALONE[0])) == 1


def test_a_wrong_option_does_not_hide_that_there_is_no_recipe() -> None:
    first, second = refused("rnk=4")
    assert "no option rnk" in first
    assert "no recipe chosen" in second


def test_a_misspelled_recipe_is_all_that_is_wrong() -> None:
    (fault,) = refused("rcipe=quickstart")
    assert "did you mean recipe?" in fault
