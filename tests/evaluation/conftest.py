"""Fixtures of benchmark tests: an endpoint, a clock that does not wait, a sandbox."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.sandbox.check import check
from tests.evaluation.endpoints import KEY, PATIENCE, VARIABLE, Endpoint
from tests.evaluation.mt_bench_rows import Bench
from tests.evaluation.programs import Hostile, grade_add_two, processes_named


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv(VARIABLE, KEY)
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join(PATIENCE)
    endpoint.server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replaces sleeping: the seconds that a client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.fixture(scope="session")
def no_sandbox() -> str:
    """Why the kernel allows no sandbox here; empty if it allows one, and then every test of it must pass."""
    try:
        check()
    except UserError as error:
        forbidden = re.search("(creating namespaces|mapping|mounting|changing the root).* was refused", str(error))
        return str(error) if forbidden or "only on Linux" in str(error) else ""
    return ""


@pytest.fixture
def sandbox(no_sandbox: str) -> None:
    """For tests that run programs."""
    if no_sandbox:
        pytest.skip(no_sandbox)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    """Runs a program with a name of its own; asserts that it fails, leaves no process, and touches no file outside."""
    canary = tmp_path / "canary.txt"
    canary.write_text("alive")
    before = sorted(tmp_path.rglob("*"))

    def run(program: str, **more: Any) -> str:
        name = uuid.uuid4().hex[:15]
        mark = f"import ctypes; ctypes.CDLL(None).prctl(15, b{name!r}, 0, 0, 0)\nCANARY = {str(canary)!r}\n"
        reason = grade_add_two(mark + program, **more)
        assert reason != "passed"
        assert not processes_named(name)
        return reason

    yield run
    assert canary.read_text() == "alive"
    assert sorted(tmp_path.rglob("*")) == before
