"""Programs on trial, and the processes that they leave."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from lora_ga_cli.evaluation.sandbox.sandbox import Box, Limits
from lora_ga_cli.evaluation.sandbox.verdict import Trial, try_in_boxes

Hostile = Callable[..., str]
PROMPT = "def add_two(x):\n    '''Adds two.'''\n"
TEST = "def check(candidate):\n    for x in (1, 20, -5):\n        assert candidate(x) == x + 2\n"
RIGHT = "def add_two(x):\n    return x + 2\n"
LIMITS = Limits(seconds=20)
SETTLED = 5.0
"""Seconds in which a process that was killed must have vanished."""


def trial(program: str, test: str = TEST, limits: Limits = LIMITS) -> str:
    return try_in_boxes(Trial(program, "add_two", PROMPT, test), limits)


def processes_named(name: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == name:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def innermost(running: Box) -> int:
    """The process of the boxed program, once it is there."""
    deadline = time.monotonic() + 30
    outer = psutil.Process(running._process.pid)
    while time.monotonic() < deadline:
        found = [child for child in outer.children(recursive=True) if any("candidate" in part for part in argv(child))]
        if found:
            return found[0].pid
        time.sleep(0.02)
    raise AssertionError("the program did not start")


def argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
