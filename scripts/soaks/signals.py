"""Sends signals to trainings at random moments, and kills the parents of sandboxes."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from soaks._figure import Figure, at_least, at_most
from soaks._project import make_base, make_rows, options

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
IN_TIME = 30.0
"""Seconds in which a checkpoint has to be written."""
HALF = 0.5
"""Seconds after which nothing of a sandbox may be left."""
ROOT = Path(__file__).resolve().parents[2]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signals", type=int, default=60, help="how many are sent (60)")
    parser.add_argument("--kills", type=int, default=30, help="how many parents of sandboxes are killed (30)")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Sends the signals, then kills the parents."""
    yield from _trainings(options.signals, random.Random(options.seed))
    script = [sys.executable, str(ROOT / "tests" / "evaluation" / "killed_parents.py"), str(options.kills), "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=_environment())
    lived = [float(line) for line in done.stdout.split()]
    yield at_least("killed parents of sandboxes", len(lived), options.kills)
    yield at_most(f"  sandboxes that lived on for more than {HALF} s", sum(item > HALF for item in lived))
    yield Figure("  the longest", f"{max(lived, default=0.0):.2f} s")


def _trainings(count: int, draw: random.Random) -> Iterator[Figure]:
    home = Path.cwd()
    make_base(home / "base")
    make_rows(home / "rows.jsonl")
    command = ["train", *options(home), "method=lora", "trainer.max_steps=60", "trainer.save_steps=25"]
    expected, seconds, _ = _once([*command, "output_dir=expected"], None, 0.0)
    weights = (home / "expected" / "mine" / "adapter_model.safetensors").read_bytes()
    found: Counter[str] = Counter({"too late": 0, "code": 0, "silent": 0, "other": 0})
    found["other"] += expected != 0
    slowest, number = 0.0, 0
    while number < count:
        output = f"output_dir=runs-{number}"
        code: int | None = None
        while code != 0 and number < count:
            chosen = draw.choice(SIGNALS)
            code, took, text = _once([*command, output], chosen, draw.uniform(0.3, 1.0) * seconds)
            number += 1
            if code == 0:
                continue
            slowest = max(slowest, took)
            found["too late"] += took > IN_TIME
            # before `loraga` handles signals, the system's own action ends it
            found["code"] += code not in (128 + chosen, -chosen)
            found["silent"] += (
                code == 128 + chosen and "To go on: " not in text and "To start from the beginning: " not in text
            )
        if code != 0:
            code, _, _ = _once([*command, output], None, 0.0)
        result = home / output.partition("=")[2] / "mine" / "adapter_model.safetensors"
        found["other"] += code != 0 or result.read_bytes() != weights
    yield at_least("signals sent to a training", number, count)
    yield at_most("  trainings that took more than 30 s to stop", found["too late"])
    yield Figure("  the longest", f"{slowest:.1f} s")
    yield at_most("  other exit codes than 128 + signal", found["code"])
    yield at_most("  no command to go on", found["silent"])
    yield at_most("  results other than without signals", found["other"])


def _once(command: list[str], number: int | None, after: float) -> tuple[int, float, str]:
    """Runs a command; returns its exit code, the seconds from the signal (or start) to its end, and what it printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_ga_cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=_environment(),
    )
    began = time.monotonic()
    if number is not None:
        time.sleep(after)
        began = time.monotonic()
        process.send_signal(number)
    text, _ = process.communicate()
    return process.returncode, time.monotonic() - began, text


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
