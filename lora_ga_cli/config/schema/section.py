"""What all groups of options have in common."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from lora_ga_cli.config.exclusions import Exclusion

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A group of options: immutable, and closed to unknown names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    exclusions: ClassVar[tuple[Exclusion, ...]] = ()
    """Options that switch others off, which a file of lower precedence sets."""

    @classmethod
    def all_exclusions(cls) -> list[Exclusion]:
        """The exclusions of the section and of those that it derives from."""
        declared = [vars(parent).get("exclusions", ()) for parent in cls.__mro__]
        return list(dict.fromkeys(exclusion for exclusions in declared for exclusion in exclusions))


def unless(problems: list[str], section: S) -> S:
    """The section, unless there are problems: then all of them in one error, a line each."""
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))  # two rules may find the same one
    return section
