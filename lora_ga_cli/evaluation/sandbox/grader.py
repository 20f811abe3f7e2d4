"""Runs a problem's tests, in a sandbox that never runs a line of the candidate program.

The tests call a stand-in for the function. It sends the arguments to the candidate's process and returns the answer.
Tests and prompt come from the data set and are trusted; some tests use helper functions of the prompt.
"""

from __future__ import annotations

import json
import os
from typing import Any

from lora_ga_cli.evaluation.sandbox import protocol

MAX_REASON = 200
"""Characters of a reason that are kept."""


class Raised(BaseException):
    """The candidate's function raised an exception. Tests do not catch this class by mistake."""


class NoAnswer(BaseException):
    """The candidate's process has closed the connection."""


def main() -> None:
    with open("/sandbox/task.json", encoding="utf-8") as file:  # noqa: PTH123
        task = json.load(file)
    answers, asked, verdict = os.fdopen(3, "rb"), os.fdopen(4, "wb"), os.fdopen(5, "w", encoding="utf-8")
    json.dump(run_tests(task, CandidateFunction(answers, asked)), verdict)
    verdict.close()


class CandidateFunction:
    """Stands in for the candidate's function.

    Arguments and answers are copies, so a change that the function makes to an argument is not seen here. No test of
    the data set looks for one.
    """

    def __init__(self, answers: Any, asked: Any):
        self._answers, self._asked = answers, asked

    def __call__(self, *positional: Any, **named: Any) -> Any:
        self.ask([positional, named])
        return self.answer("value")

    def ask(self, message: Any) -> None:
        try:
            protocol.write(self._asked, message)
        except BrokenPipeError as error:
            raise NoAnswer("gone") from error

    def answer(self, kind: str) -> Any:
        """Waits for an answer of this kind; any other counts as an exception of the function."""
        try:
            message = protocol.read(self._answers)
        except protocol.Gone as error:
            raise NoAnswer("gone") from error
        except protocol.BadMessage as error:
            raise Raised("BadAnswer", str(error)) from error
        match message:
            case ["raised", str(name), str(text)]:
                raise Raised(name, text)
            case [str(actual), *values] if actual == kind:
                return values[-1] if values else None
        raise Raised("BadAnswer", "not an answer of the protocol")


def run_tests(task: dict[str, str], candidate: CandidateFunction) -> dict[str, str]:
    """The verdict: ``passed``, ``wrong answer``, ``gone``, ``memory`` or ``exception``, with a text."""
    names: dict[str, Any] = {"__name__": "grader"}
    try:
        candidate.ask(task["entry_point"])
        candidate.answer("ready")
        exec(compile(task["prompt"], "prompt.py", "exec"), names)
        names[task["entry_point"]] = candidate  # some tests call it by its name
        exec(compile(task["test"], "test.py", "exec"), names)
        names["check"](candidate)
    except NoAnswer:
        return {"verdict": "gone"}
    except Raised as error:
        kind, text = error.args
        return {"verdict": "memory"} if kind == "MemoryError" else exception(kind, text)
    except AssertionError:
        return {"verdict": "wrong answer"}
    except MemoryError:
        return {"verdict": "memory"}
    except BaseException as error:
        return exception(type(error).__name__, str(error))
    return {"verdict": "passed"}


def exception(kind: str, text: str) -> dict[str, str]:
    """The verdict on an exception, whose text the program may have written: printable, on one line and short."""
    line = " ".join(f"{kind}: {text}".split()) if text else kind
    return {"verdict": "exception", "text": "".join(letter for letter in line if letter.isprintable())[:MAX_REASON]}
