"""Machines are told apart by more than their names."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from lora_ga_cli.machine import this_container, this_machine

BOOT = Path("/proc/sys/kernel/random/boot_id")


@pytest.mark.skipif(not BOOT.exists(), reason="not Linux")
def test_two_machines_of_one_name_differ() -> None:
    """They have begun at different times. All hosts have the same number of the first namespace."""
    assert this_machine() == f"{platform.node()}/{BOOT.read_text().strip()}"
    assert this_container().startswith(f"{this_machine()}/pid:")


def test_a_machine_without_a_number_of_its_start_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ga_cli.machine._BOOT", tmp_path / "boot_id")
    monkeypatch.setattr("lora_ga_cli.machine._PROCESSES", tmp_path / "pid")
    assert this_machine() == this_container() == platform.node()
