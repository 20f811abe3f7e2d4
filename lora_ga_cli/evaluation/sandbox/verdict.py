"""Grades a candidate program: one sandbox runs it, and the grader tests it from another sandbox.

A program can end its process, print anything, look into the frames of its callers, or return an object that equals
everything. If the tests ran in its own process, each of these could pass them. So the grader calls the function over a
pipe, receives copies of plain values, and compares them in a process where no line of the program has run.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, replace
from typing import IO

from lora_ga_cli.evaluation.sandbox.check import refusal
from lora_ga_cli.evaluation.sandbox.sandbox import Ended, Limits, Sandbox

GRADER_GRACE = 10.0
"""Seconds that the grader has in addition to the program's time."""
CANDIDATE_GRACE = 5.0
"""Seconds to wait for the end of a candidate that has closed the connection; then it is stopped."""
PASSED = "passed"


@dataclass(frozen=True)
class CandidateProgram:
    """A program and the tests that it must pass.

    Args:
        program: the complete source, which is not trusted.
        entry_point: the name of the function that is tested.
        prompt: trusted Python source that the tests may use, usually helper functions.
        test: trusted Python source that defines ``check(candidate)``.
    """

    program: str
    entry_point: str
    prompt: str
    test: str


def grade(candidate: CandidateProgram, limits: Limits) -> str:
    """Runs a candidate program and its tests in two sandboxes; no process is left afterwards.

    Args:
        limits: what the candidate program may use.

    Returns:
        ``passed``, or why not: ``wrong answer``, ``exception: ...``, ``timed out``, ``memory``, ``exited``,
        ``killed by signal N``, ``printed too much``.

    Raises:
        UserError: no sandbox could be built.
    """
    task = {"prompt": candidate.prompt, "test": candidate.test, "entry_point": candidate.entry_point}
    with contextlib.ExitStack() as stack:
        asked, ask = _pipe(stack)
        answers, answer = _pipe(stack)
        verdicts, verdict = _pipe(stack)
        runner = _start(stack, "candidate", {"program.py": candidate.program}, limits, [asked, answer])
        longer = replace(limits, seconds=limits.seconds + GRADER_GRACE)
        grader = _start(stack, "grader", {"task.json": json.dumps(task)}, longer, [answers, ask, verdict])
        for file in (asked, ask, answers, answer, verdict):
            file.close()
        report = verdicts.read()
        ended = _built(grader.wait())
        result: dict[str, str] = json.loads(report) if report else {}
        if result.get("verdict") == "gone":
            return _end(_built(runner.wait(CANDIDATE_GRACE)))
    if result.get("verdict") == "exception":
        return f"exception: {result['text']}"
    return result.get("verdict") or _end(ended)


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reads, writes = os.pipe()
    return stack.enter_context(open(reads, "rb")), stack.enter_context(open(writes, "wb"))  # noqa: PTH123


def _start(
    stack: contextlib.ExitStack, role: str, files: dict[str, str], limits: Limits, channels: list[IO[bytes]]
) -> Sandbox:
    sandbox = Sandbox([role, "protocol"], files, limits=limits, channels=[file.fileno() for file in channels])
    stack.callback(sandbox.stop)
    return sandbox


def _built(ended: Ended) -> Ended:
    if ended.how == "refused":
        raise refusal(ended)
    return ended


def _end(ended: Ended) -> str:
    """The reason why the program gave no answer."""
    return f"killed by signal {ended.code}" if ended.how == "killed" else ended.how.replace("stopped", "exited")
