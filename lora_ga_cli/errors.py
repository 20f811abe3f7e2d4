"""The errors that a user can fix.

Every error that a user may see is a `UserError`: one or two lines that say what was wrong, the value, and what to do.
The command line prints it without a traceback and exits with `exit_code`; a program can catch it by class.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class UserError(Exception):
    """An error that the user can fix. `str(error)` is a message for the user."""

    exit_code = 1


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong in the user's input.

    Args:
        where: the place, as the user would look it up (``command line``, ``recipes/mine.yaml:7``, ``data.jsonl:12``).
        what: what is wrong there, with the value.
        hint: the nearest valid value or the next step; empty if there is none.
    """

    where: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.hint})" if self.hint else "")


class InvalidInput(UserError):
    """All faults in the input, reported together before any long step begins."""

    exit_code = 2

    def __init__(self, faults: Sequence[Fault]):
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[InvalidInput], tuple[list[Fault]]]:
        return type(self), (self.faults,)  # an exception is otherwise copied from its message


class DataError(InvalidInput):
    """A data set cannot be read as the configuration says."""


class ModelError(UserError):
    """A model cannot be loaded, or does not fit the task."""

    exit_code = 2


class TargetError(UserError):
    """A method cannot be used on this model: target modules match nothing, cannot be adapted, or are too small for the
    rank; or the run is too short for the method's schedule."""

    exit_code = 2


class GradientError(UserError):
    """A gradient is missing, zero or not finite, or an artifact does not fit the request."""


class ArtifactDamaged(GradientError):
    """A stored gradient artifact does not have the bytes that were written."""

    exit_code = 2


class EqualityError(UserError):
    """Two forms of a model that should compute the same do not."""


class TrainingError(UserError):
    """Training had to stop."""


class SweepError(UserError):
    """Some jobs of a sweep failed; the others finished."""

    def __init__(self, failures: Sequence[Exception], jobs: int | None = None, reason: str = ""):
        """Args:
        failures: the errors that they raised.
        jobs: the number of jobs; None if a launcher ran them in other processes and reported only the first failure.
        reason: what no job has reported, such as that a launcher cannot start any.
        """
        self.failures, self.jobs, self.reason = list(failures), jobs, reason
        self.results: list[dict[str, Any]] = []
        """The result or error of each job as plain data, where they are collected."""
        share = f"{len(self.failures)} of {jobs}" if jobs else "one or more"
        begin = f"{reason}: " if reason else ""
        super().__init__(f"{begin}{share} jobs failed; run the same command again to repeat only those")

    def __reduce__(self) -> tuple[type[SweepError], tuple[list[Exception], int | None, str]]:
        return type(self), (self.failures, self.jobs, self.reason)


class Interrupted(UserError):
    """A signal stopped the command."""

    def __init__(self, message: str, signal: int = 2):
        """Args:
        signal: its number; the exit code is 128 more, as in shells.
        """
        super().__init__(message)
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (str(self), self.exit_code - 128)


class DamagedFile(UserError, ValueError):
    """A file does not have the bytes that were written, or is not there.

    It is a `ValueError` too, so that readers who can do without a file treat it as one that cannot be parsed.

    Args:
        file: the file.
        what: what is wrong with it, as ``has 10 bytes and was written with 12``.
        mend: the command that makes it anew, or another next step.
    """

    exit_code = 2

    def __init__(self, file: object, what: str, mend: str = ""):
        self.file, self.what, self.mend = file, what, mend
        super().__init__(f"{file} {what}" + (f": {mend}" if mend else ""))

    def __reduce__(self) -> tuple[type[DamagedFile], tuple[object, str, str]]:
        return type(self), (self.file, self.what, self.mend)


class RunError(UserError):
    """A run folder is missing something, or belongs to other settings."""

    exit_code = 2


class SeveralProblems(RunError):
    """None of several things can be used, each for a reason of its own."""

    def __init__(self, problems: Sequence[UserError]):
        self.problems = list(problems)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """The reasons, each once."""
        return list(dict.fromkeys(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[SeveralProblems], tuple[list[UserError]]]:
        return type(self), (self.problems,)


def together(problems: Sequence[UserError]) -> UserError:
    """One error that says why each of several things cannot be used, where none of them can.

    Args:
        problems: at least one.
    """
    return problems[0] if len(problems) == 1 else SeveralProblems(problems)


def system_fault(option: str, path: object, error: OSError) -> Fault:
    """What the system said about a path that an option names, and what to do.

    Args:
        option: the option, as it is written.
        path: the file or folder that could not be used.
    """
    said = error.strerror or str(error) or type(error).__name__
    other = "give another place" if option == "system" else f"give another {option}"
    hints = {
        errno.ENOSPC: f"free some space there, or {other}",
        errno.EDQUOT: f"free some space there, or {other}",
        errno.EACCES: f"allow it, or {other}",
        errno.EPERM: f"allow it, or {other}",
        errno.EROFS: f"nothing can be written there: {other}",
        errno.EFBIG: f"a limit on the size of files (ulimit -f) stops it: raise it, or {other}",
        errno.ENAMETOOLONG: f"a shorter name: {other}",
        errno.ENOTDIR: f"a part of this path is a file: {other}",
        errno.EEXIST: f"there is a file already: {other}",
    }
    return Fault(option, f"{path}: {said[0].lower()}{said[1:]}", hints.get(error.errno or 0, other))


def suggest(word: str, valid: Iterable[str], label: str = "did you mean") -> str:
    """A hint for a misspelled word: the closest valid one, or all of them if they are few; empty if none is close."""
    choices = sorted(set(valid))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f"{label} {close[0]}?"
    tail = [choice for choice in choices if choice.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    if tail:
        return f"{label} {tail[0]}?"
    return f"known: {', '.join(choices)}" if 0 < len(choices) <= 16 else ""
