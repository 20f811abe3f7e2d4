"""Garbage collection while a program starts and after."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lora_ga_cli import garbage

RUN = """
import gc, sys
from lora_ga_cli.cli import app
before = gc.get_threshold()
import lora_ga_cli.data.load
def show(*_, **__):
    print("after", gc.get_threshold() == before, gc.isenabled(), gc.get_freeze_count() > 100_000)
    raise SystemExit
lora_ga_cli.data.load.load_data = show
sys.argv = ["loraga", "train", "recipe=quickstart", "--preview"]
app.run()
"""


@pytest.fixture(autouse=True)
def usual_thresholds() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    garbage.imported()
    assert gc.get_threshold() == thresholds


def test_collections_are_rare_only_until_everything_is_imported() -> None:
    usual = gc.get_threshold()
    garbage.collect_rarely()
    garbage.collect_rarely()
    assert gc.get_threshold()[0] > usual[0]
    garbage.imported()
    assert gc.get_threshold() == usual


def test_a_program_that_did_not_begin_with_it_is_left_alone() -> None:
    gc.unfreeze()
    garbage.imported()
    assert gc.get_freeze_count() == 0


@pytest.mark.slow
def test_a_run_collects_as_usual_when_it_reads_its_rows() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert "after True True True" in done.stdout, done.stdout + done.stderr
