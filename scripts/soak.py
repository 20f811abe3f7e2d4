"""Makes faults at random for minutes or hours, and counts what came of them.

    python scripts/soak.py corrupt              1,000 flipped bits and 300 cut files
    python scripts/soak.py corrupt --help       the options of a kind

Each kind is a file of `scripts/soaks/`. A line is printed for each figure, then a verdict; the exit code is 1 if a goal
was not reached. Everything happens in a temporary folder, offline.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent


def kinds() -> dict[str, ModuleType]:
    """The module of every kind of fault, by the name of its file."""
    names = sorted(file.stem for file in (HERE / "soaks").glob("*.py") if not file.stem.startswith("_"))
    return {name: importlib.import_module(f"soaks.{name}") for name in names}


def parsed(words: list[str] | None, known: dict[str, ModuleType]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    chosen = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, module in known.items():
        described = (module.__doc__ or "").strip().splitlines()[0]
        own = chosen.add_parser(name, help=described, description=described)
        own.add_argument("--seed", type=int, default=0, help="of what is chosen at random (0)")
        own.add_argument("--keep", action="store_true", help="leave the temporary folder, to look at what failed")
        module.arguments(own)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Runs one kind; returns the exit code."""
    known = kinds()
    options = parsed(words, known)
    began, reached, before = time.monotonic(), True, Path.cwd()
    folder = tempfile.mkdtemp(prefix=f"soak-{options.kind}-")
    os.environ |= {"LORAGA_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
    os.chdir(folder)
    try:
        for figure in known[options.kind].run(options):
            print(figure, flush=True)
            reached = reached and figure.reached
    finally:
        os.chdir(before)
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if options.keep:
        print(f"everything is in {folder}")
    print(f"{'passed' if reached else 'FAILED'} in {time.monotonic() - began:.0f} s, seed {options.seed}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
