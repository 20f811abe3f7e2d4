"""The accused: runs the program on trial, in a box of its own, and calls its function as the grader asks.

Nothing here is trusted. Whatever the program does to this process, all it can send is an answer, and the grader
compares it with the right one in another box.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from lora_ga_cli.evaluation.sandbox import protocol

TEXT = 200
"""Characters of an exception's message."""


def main() -> None:
    os.environ.clear()  # Python puts its locale there
    asked, answers = os.fdopen(3, "rb"), os.fdopen(4, "wb")
    with open("/box/program.py", encoding="utf-8", errors="surrogatepass") as file:  # noqa: PTH123
        program = file.read()
    entry_point: str = protocol.read(asked)
    module = types.ModuleType("program")
    sys.modules["program"] = module  # dataclasses and others look their module up
    try:
        exec(compile(program, "program.py", "exec"), module.__dict__)
        function = getattr(module, entry_point)
        answer: list[Any] = ["ready"]
    except BaseException as error:
        answer = told(error)
    while True:
        try:
            protocol.write(answers, answer)
        except BaseException as error:
            protocol.write(answers, told(error))
        try:
            positional, named = protocol.read(asked)
        except protocol.Gone:
            return
        try:
            answer = ["value", function(*positional, **named)]
        except BaseException as error:
            answer = told(error)


def told(error: BaseException) -> list[str]:
    """An exception as a message, which has its text even if the program made it hard to print."""
    try:
        text = str(error)[:TEXT]
    except BaseException:
        text = ""
    return ["raised", type(error).__name__[:TEXT], text]
