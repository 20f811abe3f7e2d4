"""Flips single bits of files that are read back, and cuts files; nothing of it may go unnoticed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from soaks._figure import Figure


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flips", type=int, default=1000, help="how many bits are flipped, one at a time (1000)")
    parser.add_argument("--cuts", type=int, default=300, help="how many files are cut, one at a time (300)")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    yield Figure("not written yet", "-", "written", reached=False)
