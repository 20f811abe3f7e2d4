"""One process stops at its own signal, several when all know of it."""

from __future__ import annotations

import signal

import pytest

from lora_ga_cli import interruption
from lora_ga_cli.training.shared_signal import SharedSignal


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("requested", [None, signal.SIGTERM])
@pytest.mark.parametrize("agreed", [False, True])
def test_several_processes_stop_when_they_agree_and_one_when_it_has_a_signal(
    processes: int, requested: int | None, agreed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interruption._State, "requested", requested)
    shared = SharedSignal(processes)
    shared.agreed = agreed
    assert shared.stops == (agreed if processes > 1 else requested is not None)


def test_a_signal_is_announced_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shared = SharedSignal(1)
    shared.announce()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(interruption._State, "requested", signal.SIGINT)
    shared.announce()
    shared.announce()
    assert capsys.readouterr().err.count("Ctrl-C again stops at once") == 1
