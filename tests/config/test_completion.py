"""What the shell offers while a command is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.completion import candidates
from tests.config import BASE, lay_out


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "recipe=qu", ["recipe=quickstart"]),
        ([], "method=lora", ["method=lora", "method=lora_ga"]),
        ([], "model.dtype=b", ["model.dtype=bfloat16"]),
        ([], "overwrite=", ["overwrite=true", "overwrite=false"]),
        ([], "trainer.learning", ["trainer.learning_rate="]),
        ([], "rank=", []),
        ([], "nothing.like.it", []),
        (["recipe=quickstart"], "ran", ["rank="]),
        (["recipe", "="], "qu", ["quickstart"]),
        (["recipe"], "=", ["llama2_metamath", "quickstart"]),
    ],
    ids=lambda value: str(value),
)
def test_groups_recipes_options_and_values_are_completed(
    words: list[str], incomplete: str, expected: list[str]
) -> None:
    offered = candidates(words, incomplete)
    assert set(expected) <= set(offered)
    assert all(word.startswith(incomplete) for word in offered) or incomplete == "="
    assert bool(offered) == bool(expected)


def test_an_empty_word_offers_the_recipe_first() -> None:
    assert candidates([], "")[0] == "recipe="


def test_a_users_folder_is_looked_into(tmp_path: Path) -> None:
    lay_out(tmp_path, {"recipes/mine.yaml": BASE, "method/mine.yaml": "name: mine\n"})
    words = ["--config-dir", str(tmp_path)]
    assert candidates(words, "recipe=mi") == ["recipe=mine"]
    assert candidates(words, "method=mi") == ["method=mine"]
