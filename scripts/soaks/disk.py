"""Lets writing fail at random sizes of files, and runs the same command again without that limit."""

from __future__ import annotations

import argparse
import contextlib
import random
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from soaks._figure import Figure, at_least, at_most
from soaks._project import loraga, make_base, make_rows, must, options, quickly

SIZES = (200, 60_000)
"""Bytes: the smallest and the largest limit. The largest file of the small project is larger."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--failures", type=int, default=200, help="how many commands run with a limit (200)")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Runs commands with a limit on the size of files, which ends a write as a full disk does."""
    with quickly():
        yield from _commands(options.failures, random.Random(options.seed))


def _commands(count: int, draw: random.Random) -> Iterator[Figure]:
    home = Path.cwd()
    make_base(home / "base")
    make_rows(home / "rows.jsonl")
    given = options(home)
    must("train", *given, "output_dir=expected")
    weights = (home / "expected" / "mine" / "adapter_model.safetensors").read_bytes()
    found: Counter[str] = Counter()
    for number in range(count):
        command = draw.choice(("train", "merge"))
        for name in ("runs", "cache", "merged"):
            shutil.rmtree(name, ignore_errors=True)
        words = ["train", *given]
        if command == "merge":
            must("train", *given)
            words = ["merge", "runs/mine", "--output", "merged"]
        size = round(SIZES[0] * (SIZES[1] / SIZES[0]) ** draw.random())
        with _limited(size):
            done = loraga(*words)
        found["failed"] += done.code != 0
        if done.code not in (0, 2) or "unexpected" in done.text or done.text.count("error ") > 1:
            found["unexpected"] += 1
            print(f"  {number}: {command} with {size} bytes: exit {done.code}: {done.text[-300:]}", flush=True)
        found["left"] += len([*home.rglob(".*.tmp")])
        again = loraga(*words) if done.code else done
        result = home / "runs" / "mine" / "adapter_model.safetensors"
        if again.code or result.read_bytes() != weights:
            found["other"] += 1
            print(f"  {number}: {command} again: exit {again.code}: {again.text[-300:]}", flush=True)
    yield at_least("commands with a limit on the size of files", count, count)
    yield Figure("  of which: stopped by it", f"{found['failed']:,}")
    yield at_most("  not one line with exit code 2", found["unexpected"])
    yield at_most("  temporary files left", found["left"])
    yield at_most("  the same command does not go on, or to another result", found["other"])


@contextlib.contextmanager
def _limited(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
