"""One of several processes fails: it says why, or another one does, and all end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from lora_ga_cli import peers
from lora_ga_cli.machine import this_container
from tests.helpers import Arguments

PROGRAM = Path(__file__).parent / "cli" / "failing_together.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def errors(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(("error ", "stopped "))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accident", "said"),
    [
        ("memory", "process 1: the accelerator's memory is full"),
        ("exception", "process 1: unexpected ValueError: a fault of a library"),
        ("killed", "process 1 was killed or has crashed"),
    ],
)
def test_one_message_names_the_process_that_failed(accident: str, said: str, arguments: Arguments) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    options = arguments("llama", "method=lora", "trainer.max_steps=4")
    began = time.monotonic()
    run = subprocess.run(
        [*launch, str(PROGRAM), accident, "train", *options], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode != 0
    assert len(errors(run.stdout + run.stderr)) == 1, run.stdout + run.stderr
    (message,) = errors(run.stdout + run.stderr)
    assert said in message
    assert (
        f"rank      : 1 (local_rank: 1)\n  exitcode  : {-9 if accident == 'killed' else 1}"
        in run.stderr.partition("Root Cause")[2]
    )
    assert time.monotonic() - began < 60


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_without_torchrun_the_others_end_too(rank: int, arguments: Arguments) -> None:
    """Process 0 hosts the store, by which the others would learn of its end."""
    options = arguments("llama", "method=lora", "trainer.max_steps=400", "trainer.save_steps=null")
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "lora_ga_cli", "train", *options],
            env=shared | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (0, 1)
    ]
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if "train  step" in line:
            break
    processes[rank].kill()
    printed, _ = processes[1 - rank].communicate(timeout=60)
    processes[rank].wait()
    assert processes[1 - rank].returncode == 1
    (message,) = errors(printed)
    assert f"process {rank}" in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestWatch:
    """Process 0 of two looks after process 1, whose entries the test writes."""

    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> TCPStore:
        port = free_port()
        for name, value in {"WORLD_SIZE": 2, "RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        for name in ("PERIOD", "SILENCE", "PATIENCE"):
            monkeypatch.setattr(peers, name, {"PERIOD": 0.02, "SILENCE": 0.3, "PATIENCE": 0.3}[name])
        return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))

    @pytest.fixture
    def said(self) -> list[str]:
        return []

    @pytest.fixture
    def left(self, store: TCPStore, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
        """Waits until the thread ends this process, and returns the exit code."""
        codes: list[int] = []
        is_left = threading.Event()

        def leave(code: int) -> None:
            codes.append(code)
            is_left.set()
            raise SystemExit  # of the thread

        def wait() -> int:
            assert is_left.wait(10)
            return codes[0]

        monkeypatch.setattr(peers, "_leave", leave)
        peers.report_to(said.append)
        peers.watch()
        yield wait
        if peers._State.watch is not None:
            peers._State.watch.stopped.set()
            peers._State.watch.join(10)
        peers._State.watch = peers._State.report = None

    def enter(self, store: TCPStore, process: subprocess.Popen[bytes] | None = None, machine: str = "") -> None:
        """Writes where process 1 is."""
        number = process.pid if process else 1
        store.set(peers._name("address/1"), f"{number} {peers._began(number)} {machine or this_container()}")

    def test_a_process_of_this_machine_that_is_killed_is_noticed(
        self, store: TCPStore, left: Callable[[], int], said: list[str]
    ) -> None:
        other = subprocess.Popen(["sleep", "60"])
        self.enter(store, other)
        time.sleep(0.3)
        assert said == []
        other.kill()  # and is not waited for, so that it stays in the list of processes
        assert left() == 1
        assert [text.partition(" (")[0] for text in said] == ["process 1 was killed or has crashed"]
        other.wait()

    def test_a_process_that_has_ended_in_good_order_is_not_missed(
        self, store: TCPStore, left: Callable[[], int], said: list[str]
    ) -> None:
        other = subprocess.Popen(["true"])
        self.enter(store, other)
        store.set(peers._name("done/1"), "1")
        other.wait()
        time.sleep(0.3)
        assert said == []
        peers.ended()

    def test_a_machine_that_is_silent_is_noticed(
        self, store: TCPStore, left: Callable[[], int], said: list[str]
    ) -> None:
        self.enter(store, machine="far/1")
        for beat in range(30):
            store.set(peers._name("alive/1"), str(beat))
            time.sleep(0.02)
        assert said == []
        assert left() == 1
        assert said == ["process 1 on far has not answered for 0 s"]

    def test_after_another_process_has_failed_this_one_ends_with_its_code_and_says_nothing(
        self, store: TCPStore, left: Callable[[], int], said: list[str]
    ) -> None:
        store.set(peers._name("failed"), "1 2")
        assert left() == 2
        assert said == []

    def test_the_first_of_two_that_fail_says_why(self, store: TCPStore, left: Callable[[], int]) -> None:
        peers._State.watch.stopped.set()  # type: ignore[union-attr]
        peers._State.watch.join(10)  # type: ignore[union-attr]
        store.set(peers._name("done/1"), "1")
        assert peers.has_failed_first(1, by_itself=True)
        assert store.get(peers._name("failed")) == b"0 1"

    def test_an_error_that_the_end_of_another_process_has_caused_is_not_said(
        self, store: TCPStore, left: Callable[[], int]
    ) -> None:
        """Only a moment later it is known that the other was first."""
        threading.Timer(0.1, store.set, [peers._name("failed"), "1 1"]).start()
        assert not peers.has_failed_first(1, by_itself=False)

    def test_a_signal_that_torchrun_sends_because_another_process_has_failed_is_not_said(
        self, store: TCPStore, left: Callable[[], int]
    ) -> None:
        assert peers._State.watch is not None
        assert peers._State.watch.connected.wait(10)
        peers._State.watch.stopped.set()
        peers._State.watch.join(10)
        for key, value in {"failed": "1 2", "done/1": "1"}.items():
            store.set(peers._name(key), value)
        with pytest.raises(SystemExit):
            peers.ended(by_signal=True)
        assert left() == 2

    def test_a_sweep_goes_on_after_a_job_in_which_all_have_failed(
        self, store: TCPStore, left: Callable[[], int]
    ) -> None:
        threading.Timer(0.05, store.add, [peers._name("job/1: rank=2"), 1]).start()
        assert peers.have_all_failed("1: rank=2")
        assert not peers.have_all_failed("2: rank=4")


def test_a_store_that_does_not_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to it waits without an end."""
    port, said, is_left = free_port(), list[str](), threading.Event()
    program = (
        "import sys, time; from torch.distributed import TCPStore; "
        f"store = TCPStore('127.0.0.1', {port}, is_master=True, wait_for_workers=False); print(flush=True); "
        "time.sleep(60)"
    )
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert host.stdout is not None
    host.stdout.readline()
    for name, value in {"WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    for name, seconds in {"PERIOD": 0.02, "SILENCE": 0.5}.items():
        monkeypatch.setattr(peers, name, seconds)
    monkeypatch.setattr(peers, "_leave", lambda _: is_left.set())
    watch = peers._Watch(said.append)
    watch.start()
    try:
        assert watch.connected.wait(30)
        assert not is_left.wait(1)
        host.send_signal(signal.SIGSTOP)
        assert is_left.wait(30)
        assert said[0] == "process 0, or torchrun on its machine, has not answered for 0 s"
    finally:
        watch.stopped.set()
        host.kill()
        host.communicate()


def test_the_number_of_a_process_may_be_used_again() -> None:
    began = peers._began(os.getpid())
    assert began is not None
    assert peers._exists(os.getpid(), began)
    assert not peers._exists(os.getpid(), "17")
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not peers._exists(ended.pid, began)


def test_a_process_alone_says_every_error() -> None:
    assert peers.has_failed_first(1, by_itself=True)
