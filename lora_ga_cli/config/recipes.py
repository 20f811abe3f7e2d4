"""The recipes that there are, with their commands and summaries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.config.locations import Locations
from lora_ga_cli.errors import Fault, InvalidInput, suggest


@dataclass(frozen=True)
class Recipe:
    """A recipe file. Its leading comment is its command, then what it does."""

    name: str
    file: Path

    @property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    @property
    def _comments(self) -> list[str]:
        lines = []
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").rstrip())
        return lines

    @property
    def command(self) -> str:
        return next((line for line in self._comments if line.startswith("loraga ")), f"loraga train recipe={self.name}")

    @property
    def summary(self) -> str:
        """The comment's first sentence that is not a command."""
        text = " ".join(line for line in self._comments if line and not line.startswith("loraga "))
        return text.split(". ")[0].rstrip(".")


def all_recipes(user_dir: Path | None = None) -> list[Recipe]:
    return [Recipe(name, file) for name, file in Locations(user_dir).choices("recipe").items()]


def find_recipe(name: str, user_dir: Path | None = None) -> Recipe:
    """One recipe by name.

    Raises:
        InvalidInput: with the nearest name.
    """
    recipes = {recipe.name: recipe for recipe in all_recipes(user_dir)}
    if name not in recipes:
        raise InvalidInput([Fault("command line", f"no recipe {name!r}", suggest(name, recipes))])
    return recipes[name]
