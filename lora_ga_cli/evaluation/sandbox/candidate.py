"""Runs the candidate program in its sandbox, and calls its function with the arguments that the grader sends.

Nothing in this process is trusted: the candidate program can change all of it. All it can send is an answer, and the
grader compares that answer with the right one in another sandbox.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from lora_ga_cli.evaluation.sandbox import protocol

MAX_MESSAGE = 200
"""Characters of an exception's message that are sent."""


def main() -> None:
    os.environ.clear()  # Python itself sets a variable for its locale
    asked, answers = os.fdopen(3, "rb"), os.fdopen(4, "wb")
    with open("/sandbox/program.py", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
        program = file.read()
    entry_point: str = protocol.read(asked)
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and others look up the module of a class
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
        function = getattr(module, entry_point)
        answer: list[Any] = ["ready"]
    except BaseException as error:
        answer = exception_answer(error)
    while True:
        try:
            protocol.write(answers, answer)
        except BaseException as error:
            protocol.write(answers, exception_answer(error))
        try:
            positional, named = protocol.read(asked)
        except protocol.Gone:
            return
        try:
            answer = ["value", function(*positional, **named)]
        except BaseException as error:
            answer = exception_answer(error)


def exception_answer(error: BaseException) -> list[str]:
    """The answer that reports an exception; its text is empty if the program made ``str(error)`` fail."""
    try:
        text = str(error)[:MAX_MESSAGE]
    except BaseException:
        text = ""
    return ["raised", type(error).__name__[:MAX_MESSAGE], text]
