"""Kills processes that run a program in a sandbox, at random moments, and prints how long each sandbox lived on.

Usage: ``python killed_parents.py KILLS SEED``: one line for each, with the seconds and the number of processes that the
killed one had.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time

import psutil

from lora_ga_cli.evaluation.sandbox.sandbox import Limits
from lora_ga_cli.evaluation.sandbox.verdict import CandidateProgram, grade

PR_SET_CHILD_SUBREAPER = 36
PATIENCE = 10.0
"""Seconds after which a sandbox counts as one that lives on."""
PROGRAM = "def endless(x):\n    while True:\n        pass\n"
TEST = "def check(candidate):\n    candidate(1)\n"


def survives(delay: float) -> tuple[float, int]:
    """How a sandbox lives on after its parent was killed, ``delay`` seconds after it was begun.

    Returns:
        Seconds, and the processes below the parent when it was killed.
    """
    child = os.fork()
    if child == 0:
        try:
            grade(CandidateProgram(PROGRAM, "endless", "", TEST), Limits(seconds=60))
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGSTOP)  # so that what is counted is what it leaves
    count = len(psutil.Process(child).children(recursive=True))
    os.kill(child, signal.SIGKILL)
    killed = time.perf_counter()
    while time.perf_counter() - killed < PATIENCE:
        try:
            # those that it left are children of this process now
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return time.perf_counter() - killed, count
        time.sleep(0.005)
    for left in psutil.Process().children(recursive=True):
        left.kill()
    return PATIENCE, count


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    draw = random.Random(int(sys.argv[2]))
    for _ in range(int(sys.argv[1])):
        seconds, count = survives(draw.uniform(0.0, 0.8))
        sys.stdout.write(f"{seconds:.3f} {count}\n")
