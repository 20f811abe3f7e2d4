"""What can go wrong in ways a person can fix.

Every error that a user may meet is a `UserError`: one or two lines that say what was wrong, the value, and what to
do. The command line prints them without a traceback and exits with `exit_code`; a program catches them by class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UserError(Exception):
    """Something the user can fix. `str(error)` is meant for a person."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with what the user wrote.

    Args:
        where: the place, as a person would look it up (``command line``, ``recipes/mine.yaml:7``, ``data.jsonl:12``).
        what: what is wrong there, with the value.
        hint: the nearest right spelling or the next step; empty if there is none.
    """

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class InvalidInput(UserError):
    """All faults found before any long step began."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]):
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[list[Fault]]]:
        return type(self), (self.faults,)  # an exception is otherwise copied from its message


class DataError(InvalidInput):
    """A data set that cannot be read as the configuration says."""


class ModelError(UserError):
    """A model that cannot be loaded or does not fit the task."""

    exit_code = 2


class TargetError(UserError):
    """A method that cannot be put on this model: target modules that match nothing, cannot be adapted, or are too
    small for the rank; or a run too short for its schedule."""

    exit_code = 2


class GradientError(UserError):
    """A gradient that is missing, zero or not finite, or an artifact that cannot serve."""


class ArtifactDamaged(GradientError):
    """A stored gradient artifact whose bytes are not those that were written."""


class EqualityError(UserError):
    """Two forms of a model that should compute the same do not."""


class TrainingError(UserError):
    """Training that had to stop."""


class SweepError(UserError):
    """Some jobs of a sweep failed; the others ran to their end."""

    def __init__(self, failures: Sequence[Exception], jobs: int | None = None):
        """Args:
        failures: what they raised.
        jobs: of how many; None where a launcher ran them in other processes and told of the first failure only.
        """
        self.failures, self.jobs = list(failures), jobs
        share = f"{len(self.failures)} of {jobs}" if jobs else "one or more"
        super().__init__(f"{share} jobs failed; run the same command again to repeat only those")

    def __reduce__(self) -> tuple[type[SweepError], tuple[list[Exception], int | None]]:
        return type(self), (self.failures, self.jobs)


class Interrupted(UserError):
    """The user stopped the command."""

    exit_code = 130


class RunError(UserError):
    """A run folder that is missing something, or belongs to other settings."""

    exit_code = 2


def suggest(word: str, known: Iterable[str], label: str = "did you mean") -> str:
    """The hint that names the known spelling closest to ``word``, or lists all when few; empty if none is near."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"{label} {close[0]}?"
    tail = [choice for choice in choices if choice.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    if tail:
        return f"{label} {tail[0]}?"
    return f"known: {', '.join(choices)}" if 0 < len(choices) <= 16 else ""
