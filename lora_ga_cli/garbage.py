"""Garbage collection while a program starts.

Importing torch, transformers and PEFT makes a million objects that live as long as the process. With Python's usual
thresholds, it looks through them for garbage many times before the first step (``scripts/bench_start.py``).
"""

from __future__ import annotations

import gc

WHILE_IMPORTING = (100_000, 50, 50)
_usual: list[tuple[int, int, int]] = []


def collect_rarely() -> None:
    """Collects garbage rarely until `imported`; for a process that begins."""
    if not _usual:
        _usual.append(gc.get_threshold())
        gc.set_threshold(*WHILE_IMPORTING)


def imported() -> None:
    """Collects as usual after `collect_rarely`, and no longer looks at what was imported; otherwise does nothing."""
    if _usual:
        gc.set_threshold(*_usual.pop())
        gc.freeze()
