"""Candidate programs for tests of the sandbox, and the processes that they leave."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from lora_ga_cli.evaluation.sandbox.sandbox import Limits, Sandbox
from lora_ga_cli.evaluation.sandbox.verdict import CandidateProgram, grade

Hostile = Callable[..., str]
PROMPT = "def add_two(x):\n    '''Adds two.'''\n"
TEST = "def check(candidate):\n    for x in (1, 20, -5):\n        assert candidate(x) == x + 2\n"
RIGHT = "def add_two(x):\n    return x + 2\n"
LIMITS = Limits(seconds=20)
SETTLED = 5.0
"""Seconds after which a killed process must be gone."""


def grade_add_two(program: str, test: str = TEST, limits: Limits = LIMITS) -> str:
    return grade(CandidateProgram(program, "add_two", PROMPT, test), limits)


def processes_named(name: str) -> list[int]:
    pids = []
    for process in psutil.process_iter():
        try:
            if process.name() == name:
                pids.append(process.pid)
        except psutil.Error:
            continue
    return pids


def idle_candidate(reads: int, writes: int) -> Sandbox:
    """A sandbox whose candidate waits for the first message on ``reads``."""
    modules = ["candidate", "protocol"]
    return Sandbox(modules, {"program.py": ""}, limits=Limits(seconds=60), channels=[reads, writes])


def innermost(running: Sandbox) -> int:
    """The process of the program in a sandbox, once it has started."""
    deadline = time.monotonic() + 30
    outer = psutil.Process(running._process.pid)
    while time.monotonic() < deadline:
        for child in outer.children(recursive=True):
            if any("candidate" in part for part in argv(child)):
                return child.pid
        time.sleep(0.02)
    raise AssertionError("the program did not start")


def argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
