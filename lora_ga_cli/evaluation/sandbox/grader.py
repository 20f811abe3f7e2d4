"""The grader: runs the tests of a problem in a box where the program on trial never was.

The tests call a stand-in for the function, which asks the candidate's process and hands back what it answers. They are
the data set's, as is the prompt, whose helpers some tests use; of the program not a line runs here.
"""

from __future__ import annotations

import json
import os
from typing import Any

from lora_ga_cli.evaluation.sandbox import protocol

TEXT = 200
"""Characters of a reason."""


class Raised(BaseException):
    """The function raised; no test of the data set can catch it by mistake."""


class NoAnswer(BaseException):
    """The candidate's process fell silent."""


def main() -> None:
    with open("/box/task.json", encoding="utf-8") as file:  # noqa: PTH123
        task = json.load(file)
    answers, asked, verdict = os.fdopen(3, "rb"), os.fdopen(4, "wb"), os.fdopen(5, "w", encoding="utf-8")
    json.dump(try_program(task, Candidate(answers, asked)), verdict)
    verdict.close()


class Candidate:
    """The stand-in. Arguments and answers pass by value, so a change that it makes to an argument does not come back:
    no test of HumanEval looks for one.
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
        """What it answers; anything but such an answer is as if the function had raised."""
        try:
            message = protocol.read(self._answers)
        except protocol.Gone as error:
            raise NoAnswer("gone") from error
        except protocol.BadMessage as error:
            raise Raised("BadAnswer", str(error)) from error
        match message:
            case ["raised", str(name), str(text)]:
                raise Raised(name, text)
            case [str(found), *values] if found == kind:
                return values[-1] if values else None
        raise Raised("BadAnswer", "not as the grader and the candidate speak")


def try_program(task: dict[str, str], candidate: Candidate) -> dict[str, str]:
    """The verdict: ``passed``, ``wrong answer``, ``gone``, ``memory`` or ``exception``, with a text."""
    names: dict[str, Any] = {"__name__": "grader"}
    try:
        candidate.ask(task["entry_point"])
        candidate.answer("ready")
        exec(compile(task["prompt"], "prompt.py", "exec"), names)
        names[task["entry_point"]] = candidate  # some tests call it by its own name
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
    """What it says may be the program's words: printable, on one line and short."""
    line = " ".join(f"{kind}: {text}".split()) if text else kind
    return {"verdict": "exception", "text": "".join(letter for letter in line if letter.isprintable())[:TEXT]}
