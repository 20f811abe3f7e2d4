"""Regular expressions that users write: an error that names the option, and a limit on the time of matching.

An expression such as ``(a+)+$`` tries a number of ways that grows exponentially with the text. The expressions are
those of Python's `re`, as in PEFT. (The package ``regex`` has time limits, but other matches, such as of ``\\w``, and
takes memory without bound to compile nested repetitions.) `re` looks for signals while it matches, so a timer ends it.
"""

from __future__ import annotations

import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from lora_ga_cli.errors import Fault, InvalidInput

T = TypeVar("T")
LIMIT = 2.0
"""Seconds of computing that one call may take. Usual ones take microseconds."""
LONGEST_SHOWN = 120


class _Expired(BaseException):
    """The time is over. (No `Exception`, so that code between the timer and `within_limit` lets it pass.)"""


class TakesTooLong(InvalidInput):
    """An expression computes for longer than `LIMIT`."""


class Expression:
    """A regular expression that an option gives.

    Raises:
        InvalidInput: it cannot be compiled; or, on each use, it takes too long.
    """

    def __init__(self, option: str, text: str):
        """Args:
        option: what errors name, as ``dataset.keep.text``.
        """
        self.option, self.text = option, text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # says what may change in later versions of Python
                self._compiled = within_limit(option, text, lambda: re.compile(text))
        except (re.error, OverflowError) as error:
            raise InvalidInput([Fault(option, f"{shown(text)} is no regular expression: {error}")]) from None
        except (RecursionError, MemoryError):
            raise InvalidInput([Fault(option, f"{shown(text)} is nested too deep for a regular expression")]) from None

    @property
    def groups(self) -> int:
        """How many groups it has."""
        return self._compiled.groups

    def search(self, text: str) -> re.Match[str] | None:
        return within_limit(self.option, self.text, lambda: self._compiled.search(text))

    def found_in(self, names: Iterable[str]) -> list[str]:
        """Those of the names in which it matches somewhere, within the limit for all of them.

        (To set the limit takes a hundred times as long as to search in one name.)
        """
        search = self._compiled.search
        return within_limit(self.option, self.text, lambda: [name for name in names if search(name) is not None])

    def matching(self, names: Iterable[str], *, within: str = "") -> list[str]:
        """Those of the names that it matches completely, within the limit for all of them.

        Args:
            within: a larger expression, in whose ``{}`` this one stands; it has to match the beginning of a name.
        """
        if not within:
            match = self._compiled.fullmatch
        else:
            match = Expression(self.option, within.replace("{}", self.text))._compiled.match
        return within_limit(self.option, self.text, lambda: [name for name in names if match(name) is not None])

    def last_match(self, text: str) -> re.Match[str] | None:
        """The last one of all matches from the left that do not overlap."""

        def last() -> re.Match[str] | None:
            found = None
            for match in self._compiled.finditer(text):
                found = match
            return found

        return within_limit(self.option, self.text, last)


def expression_faults(option: str, text: str) -> list[Fault]:
    """What is wrong with an expression, before it is matched."""
    try:
        Expression(option, text)
    except InvalidInput as error:
        return error.faults
    return []


def within_limit(option: str, text: str, match: Callable[[], T]) -> T:
    """What ``match`` returns, which only matches an expression.

    Python sets timers in the main thread only, and Windows has none; elsewhere there is no limit.

    Raises:
        TakesTooLong: it computes for longer than `LIMIT`.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return match()
    before = signal.signal(signal.SIGVTALRM, _expire)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
        try:
            return match()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except _Expired:
        what = f"the regular expression {shown(text)} computes for longer than {LIMIT:g} s"
        hint = "a repetition inside a repetition, such as (a+)+, takes exponential time: write a+"
        raise TakesTooLong([Fault(option, what, hint)]) from None
    finally:
        signal.signal(signal.SIGVTALRM, before)


def shown(text: str) -> str:
    """An expression as a message shows it."""
    return repr(text) if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]!r}… of {len(text):,} characters"


def _expire(number: int, frame: Any) -> None:
    raise _Expired
