"""Sends signals to trainings at random steps, and kills the parents of sandboxes.

The trainings save nothing by themselves, so every checkpoint comes from a signal. After each signal the command that
was printed is what runs next, until the training has finished.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from soaks._figure import Figure, at_least, at_most
from soaks._forked import start
from soaks._project import make_base, make_rows, must, options, quickly

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
STEPS = 60
IN_TIME = 30.0
"""Seconds in which a checkpoint has to be written."""
HALF = 0.5
"""Seconds after which nothing of a sandbox may be left."""
BEFORE = 0.2
"""Share of the signals that come before the first step of their session."""
LOADING = "data  "
"""In the first line that a training prints."""
ROOT = Path(__file__).resolve().parents[2]
STOPPED = re.compile(rf"stopped after step (\d+) of {STEPS}, with the checkpoint (\S+)\.")
ANNOUNCED = "training stops after this step"
STEP = re.compile(rf"step (\d+)/{STEPS}")
COMMAND = re.compile(r"(?:To go on|To start from the beginning): loraga (.*)")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signals", type=int, default=60, help="how many are sent (60)")
    parser.add_argument("--kills", type=int, default=30, help="how many parents of sandboxes are killed (30)")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Sends the signals, then kills the parents."""
    with quickly():
        yield from _trainings(options.signals, random.Random(options.seed))
    script = [sys.executable, str(ROOT / "tests" / "evaluation" / "killed_parents.py"), str(options.kills), "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=_environment())
    killed = [[float(item) for item in line.split()] for line in done.stdout.splitlines()]
    lived = [seconds for seconds, _ in killed]
    yield Figure("killed parents of sandboxes", f"{len(lived)}")
    yield at_least("  of which: with a sandbox that ran", sum(left > 0 for _, left in killed), options.kills // 2)
    yield at_most(f"  sandboxes that lived on for more than {HALF} s", sum(item > HALF for item in lived))
    yield Figure("  the longest", f"{max(lived, default=0.0):.2f} s")


@dataclass(frozen=True)
class Session:
    """What a process did that got a signal.

    Args:
        seconds: from the signal to its end.
    """

    code: int
    seconds: float
    lines: Sequence[str]

    def found(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The first match in a line."""
        return next((match for line in self.lines if (match := pattern.search(line))), None)

    @property
    def later_steps(self) -> int:
        """Steps that were done after the one in which the signal was noticed."""
        noticed = next((place for place, line in enumerate(self.lines) if ANNOUNCED in line), len(self.lines))
        return max(0, sum(bool(STEP.search(line)) for line in self.lines[noticed:]) - 1)


def _trainings(count: int, draw: random.Random) -> Iterator[Figure]:
    home = Path.cwd()
    tqdm.monitor_interval = 0  # its thread would be in the way of forks
    make_base(home / "base")
    make_rows(home / "rows.jsonl")
    never = f"trainer.save_steps={STEPS + 1}"
    command = ["train", *options(home), "method=lora", f"trainer.max_steps={STEPS}", never, "trainer.eval_steps=20"]
    must(*command, "output_dir=expected")
    weights = _weights(home / "expected")
    found: Counter[str] = Counter()
    slowest, runs = 0.0, 0
    while found["sent"] < count:
        output, kept = f"runs-{runs}", 0
        runs += 1
        words, code = [*command, f"output_dir={output}"], -1
        while code != 0 and found["sent"] < count and kept + 1 < STEPS:
            early = draw.random() < BEFORE
            at = LOADING if early else f"step {draw.randint(kept + 1, STEPS - 1)}/{STEPS}"
            chosen = draw.choice(SIGNALS)
            session = _session(words, chosen, at)
            code = session.code
            if code == 0:
                found["finished before"] += 1
                break
            found["sent"] += 1
            slowest = max(slowest, session.seconds)
            wrong = _wrong(session, chosen, kept, early=early)
            for name in wrong:
                found[name] += 1
            if wrong:
                print(f"  {signal.Signals(chosen).name} at {at!r}: {', '.join(wrong)}: exit {code}", flush=True)
                print("    " + "\n    ".join(session.lines[-4:]), flush=True)
            stopped, printed = session.found(STOPPED), session.found(COMMAND)
            found["saved"] += stopped is not None
            kept = int(stopped[1]) if stopped else kept
            words = shlex.split(printed[1]) if printed else words
        if code != 0:
            session = _session(words, None, "")
            found["elsewhere"] += f"resuming after step {kept}" not in "\n".join(session.lines) and kept > 0
            code = session.code
        found["other"] += code != 0 or _weights(home / output) != weights
    yield Figure("signals sent to a training", f"{found['sent']}")
    yield at_least("  of which: stopped it in a step, with a checkpoint", found["saved"], count // 2)
    yield Figure("  trainings that had finished before", f"{found['finished before']}")
    yield at_most(f"  trainings that took more than {IN_TIME:.0f} s to stop", found["late"])
    yield Figure("  the longest", f"{slowest:.1f} s")
    yield at_most("  other exit codes than 128 + signal", found["code"])
    yield at_most("  no checkpoint of the step of the signal", found["checkpoint"])
    yield at_most("  more steps after that step", found["steps"])
    yield at_most("  no command to go on", found["command"])
    yield at_most("  sessions that began elsewhere than at it", found["elsewhere"])
    yield at_most("  results other than without signals", found["other"])


def _wrong(session: Session, number: int, kept: int, *, early: bool) -> list[str]:
    """What was not as it should be when a signal came.

    Args:
        number: the signal.
        kept: the step of the checkpoint that the session began with; 0 if there was none.
        early: whether the signal came before the first step.
    """
    stopped, text = session.found(STOPPED), "\n".join(session.lines)
    saved = stopped is not None and (Path(stopped[2]) / "complete.json").is_file() and int(stopped[1]) > kept
    began = any(STEP.search(line) for line in session.lines)
    checks = {
        "late": session.seconds > IN_TIME,
        "code": session.code != 128 + number,
        "checkpoint": not saved and (not early or began),
        "steps": session.later_steps > 0,
        "command": session.found(COMMAND) is None,
        "elsewhere": kept > 0 and began and f"resuming after step {kept}" not in text,
    }
    return [name for name, wrong in checks.items() if wrong]


def _weights(folder: Path) -> bytes | None:
    file = folder / "mine" / "adapter_model.safetensors"
    return file.read_bytes() if file.exists() else None


def _session(command: Sequence[str], number: int | None, at: str) -> Session:
    """Runs a command, which gets a signal when it has printed a line with a text."""
    process = start(command)
    began, lines, sent = time.monotonic(), [], number is None
    for line in process.output:
        lines.append(line.rstrip())
        if not sent and number is not None and at in line:
            sent, began = True, time.monotonic()
            os.kill(process.pid, number)
    return Session(process.wait(), time.monotonic() - began, lines)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
