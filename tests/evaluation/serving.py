"""A real server of a real model, for tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.evaluation.endpoints import PATIENCE


@dataclass(frozen=True)
class Served:
    """A model that `transformers serve` serves."""

    model: str
    url: str
    log: Path

    def answered(self, protocol: str = "chat/completions") -> int:
        """Requests it has answered, by its log."""
        return self.log.read_text().count(f'"POST /v1/{protocol} HTTP/1.1" 200')

    def answers(self, count: int, protocol: str = "chat/completions") -> bool:
        """Waits until its log, which it writes beside its answers, holds that many."""
        deadline = time.monotonic() + PATIENCE
        while self.answered(protocol) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.answered(protocol) == count


@contextlib.contextmanager
def serve(model: Path, log: Path) -> Iterator[Served]:
    """Serves a model inside the ``with`` block.

    Args:
        model: a model's folder, or an adapter's.
        log: the file of what the server prints.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model), "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not _healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Served(str(model), f"http://127.0.0.1:{port}/v1", log)
    finally:
        process.kill()
        process.wait(PATIENCE)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
