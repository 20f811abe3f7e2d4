"""Puts a program on trial: the candidate runs it in one box, and the grader tests it from another.

A program can end its process, print what it likes, look through the frames of its callers or return an object that
equals everything; and when the tests run in its own process, each of these can pass them. Here they never do. The
grader calls the function over a pipe, gets copies of plain values back, and compares them where no line of the
program has run. To be right, the program must answer right.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, replace
from typing import IO

from lora_ga_cli.evaluation.sandbox.check import refusal
from lora_ga_cli.evaluation.sandbox.sandbox import Box, Ended, Limits

GRADER_GRACE = 10.0
"""Seconds that the grader has beyond the program's own, of which a program can take none from it."""
CANDIDATE_GRACE = 5.0
"""Seconds for a candidate that closed the line to say why it ended; then it is stopped."""
PASSED = "passed"


@dataclass(frozen=True)
class Trial:
    """A program and the tests that it must pass.

    Args:
        program: the whole of it, from which ``entry_point`` is taken.
        prompt: Python that the tests may use, trusted; helpers, usually.
        test: Python that defines ``check(candidate)``, trusted.
    """

    program: str
    entry_point: str
    prompt: str
    test: str


def try_in_boxes(trial: Trial, limits: Limits) -> str:
    """Runs a trial in two boxes, and leaves no process behind.

    Args:
        limits: of the program.

    Returns:
        ``passed``, or why not: ``wrong answer``, ``exception: ...``, ``timed out``, ``memory``, ``exited``,
        ``killed by signal N``, ``printed too much``.

    Raises:
        UserError: no box could be built.
    """
    task = {"prompt": trial.prompt, "test": trial.test, "entry_point": trial.entry_point}
    with contextlib.ExitStack() as stack:
        asked, ask = _pipe(stack)
        answers, answer = _pipe(stack)
        told, tell = _pipe(stack)
        candidate = _start(stack, "candidate", {"program.py": trial.program}, limits, [asked, answer])
        longer = replace(limits, seconds=limits.seconds + GRADER_GRACE)
        grader = _start(stack, "grader", {"task.json": json.dumps(task)}, longer, [answers, ask, tell])
        for file in (asked, ask, answers, answer, tell):
            file.close()
        said = told.read()
        ended = _built(grader.wait())
        found: dict[str, str] = json.loads(said) if said else {}
        if found.get("verdict") == "gone":
            return _end(_built(candidate.wait(CANDIDATE_GRACE)))
    if found.get("verdict") == "exception":
        return f"exception: {found['text']}"
    return found.get("verdict") or _end(ended)


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reads, writes = os.pipe()
    return stack.enter_context(open(reads, "rb")), stack.enter_context(open(writes, "wb"))  # noqa: PTH123


def _start(
    stack: contextlib.ExitStack, role: str, files: dict[str, str], limits: Limits, channels: list[IO[bytes]]
) -> Box:
    box = Box([role, "protocol"], files, limits=limits, channels=[file.fileno() for file in channels])
    stack.callback(box.stop)
    return box


def _built(ended: Ended) -> Ended:
    if ended.how == "refused":
        raise refusal(ended)
    return ended


def _end(ended: Ended) -> str:
    """Why there was no answer."""
    return f"killed by signal {ended.code}" if ended.how == "killed" else ended.how.replace("stopped", "exited")
