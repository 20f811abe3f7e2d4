"""Which options of `loraga inspect` go with what it looks into."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import StrEnum

from lora_ga_cli.errors import Fault
from lora_ga_cli.stages.inspect.options import PLACE


class Subject(StrEnum):
    """What is inspected, as messages name it."""

    recipe = "a recipe"
    key = "the key of a gradient"
    gradient = "the folder of a gradient"
    run = "a run"
    adapter = "an adapter"
    pair = "two runs or adapters"


GOES_WITH: dict[str, tuple[Subject, ...]] = {
    "--share": (Subject.recipe, Subject.key, Subject.gradient, Subject.run),
    "--all": tuple(Subject),
    "--figures": tuple(Subject),
    "--with-base": (Subject.run, Subject.adapter),
    "--base": (Subject.run, Subject.adapter, Subject.pair),
    "--layers": tuple(Subject),
    "--modules": tuple(Subject),
    "--factors": (Subject.pair,),
    "--cache-dir": (Subject.key,),
}
"""The subjects in which each option is used."""
INSTEAD = {
    (Subject.recipe, "--cache-dir"): "write cache_dir=FOLDER",
    (Subject.recipe, "--base"): "write model.path=PLACE",
}
"""What a user may have meant, where it is not to leave an option out."""


def misplaced(subject: Subject, given: Collection[str], *, base_is_read: bool = False) -> Iterator[Fault]:
    """Faults for options that would do nothing.

    Args:
        given: the options that stand on the command line, by the names of `GOES_WITH`; others are left alone.
        base_is_read: whether the adapter can be read only with its base, as one of experts' parameters.
    """
    for option in (item for item in given if item in GOES_WITH):
        subjects = GOES_WITH[option]
        if subject not in subjects:
            meant = " or ".join(subjects) if len(subjects) < 3 else f"{', '.join(subjects[:-1])} or {subjects[-1]}"
            what = f"{option} goes with {meant}, and not with {subject}"
            yield Fault(PLACE, what, INSTEAD.get((subject, option), "leave it out"))
        elif option == "--base" and "--with-base" not in given and not base_is_read:
            together = subject is not Subject.pair
            hint = "add --with-base, or leave it out" if together else "leave it out"
            yield Fault(PLACE, "--base does nothing here: no base is read", hint)
