"""Signals outside of a training: each one raises, also when what an earlier one raised was lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from lora_ga_cli import interruption
from lora_ga_cli.interruption import Interruption


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """SIGTERM has its usual effect, also where the tests run under a program that ignores it."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_signal_raises_again_when_the_first_one_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now)
    with interruption.handled():
        with contextlib.suppress(Interruption):  # as a library that catches everything does
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same request, which a launcher passes on
        now += 2 * interruption.TOGETHER
        with pytest.raises(Interruption):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_is_forgotten_when_its_command_has_ended() -> None:
    with pytest.raises(Interruption), interruption.handled():
        os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.requested() is None
    interruption.stop_if_requested()


def test_where_signals_are_deferred_each_of_them_is_remembered_only() -> None:
    def twice() -> None:
        with interruption.handled(), interruption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            interruption._State.came -= 2 * interruption.TOGETHER
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.requested() == signal.SIGTERM

    with pytest.raises(Interruption):
        twice()
