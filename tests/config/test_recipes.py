"""What recipes say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.recipes import Recipe, all_recipes, find_recipe
from lora_ga_cli.errors import InvalidInput
from tests.config import lay_out


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_a_shipped_recipe_opens_with_its_own_command_and_a_sentence(recipe: Recipe) -> None:
    assert recipe.text.startswith("# loraga train recipe=")
    assert recipe.command == f"loraga train recipe={recipe.name}"
    assert len(recipe.summary) > 20


def test_a_recipe_without_comments_has_the_usual_command_and_no_summary(tmp_path: Path) -> None:
    lay_out(tmp_path, {"recipes/bare.yaml": "rank: 3\n# not at its head\n"})
    recipe = find_recipe("bare", tmp_path)
    assert (recipe.command, recipe.summary) == ("loraga train recipe=bare", "")


def test_a_users_recipe_wins(tmp_path: Path) -> None:
    lay_out(tmp_path, {"recipes/quickstart.yaml": "# Mine. And more.\n"})
    assert find_recipe("quickstart", tmp_path).summary == "Mine"


def test_an_unknown_recipe_is_wrong_input_with_the_nearest() -> None:
    with pytest.raises(InvalidInput, match=r"did you mean quickstart\?"):
        find_recipe("quikstart")
