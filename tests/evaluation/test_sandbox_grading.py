"""The check for a sandbox, verdicts on candidate programs, and how a program ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.sandbox import check as checking
from lora_ga_cli.evaluation.sandbox import sandbox, syscalls
from lora_ga_cli.evaluation.sandbox.check import check
from lora_ga_cli.evaluation.sandbox.sandbox import Ended, Limits, Sandbox
from lora_ga_cli.evaluation.sandbox.verdict import CandidateProgram, grade
from tests.evaluation import killed_parents
from tests.evaluation.programs import (
    LIMITS,
    PROMPT,
    RIGHT,
    SETTLED,
    Hostile,
    grade_add_two,
    idle_candidate,
    innermost,
    processes_named,
)


class TestCheck:
    @pytest.mark.usefixtures("sandbox")
    def test_the_check_passes_if_there_is_a_sandbox(self) -> None:
        check()

    def test_a_kernel_without_namespaces_is_refused_with_the_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse = "def refuse(flags): raise kernel.Refused('creating namespaces', 1)\n"
        patch = f"from {sandbox.PACKAGE} import kernel\n{refuse}kernel.unshare = refuse\n"
        start = f"import sys; sys.path.append(sys.argv[1])\n{patch}from {sandbox.PACKAGE}.launch import main; main()"
        monkeypatch.setattr(sandbox, "START", start)
        monkeypatch.setattr(checking, "_help", lambda: "as root: sysctl -w user.max_user_namespaces=16384")
        with pytest.raises(UserError) as raised:
            check()
        assert str(raised.value) == (
            "no sandbox for programs can be made here: creating namespaces was refused: Operation not permitted "
            "(as root: sysctl -w user.max_user_namespaces=16384)"
        )
        with pytest.raises(UserError, match="creating namespaces was refused"):
            grade_add_two(RIGHT)

    def test_a_launcher_that_breaks_is_refused_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sandbox, "START", "raise ImportError('no ctypes')")
        with pytest.raises(UserError, match=r"building a sandbox \(ImportError: no ctypes\) was refused"):
            check()

    @pytest.mark.parametrize(
        ("setting", "value", "helps"),
        [
            ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
            ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
            ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=16384"),
        ],
    )
    def test_the_setting_that_forbids_is_named(self, tmp_path: Path, setting: str, value: str, helps: str) -> None:
        proc = fake_proc(tmp_path, Seccomp=0)
        (proc / "sys" / setting).parent.mkdir(parents=True)
        (proc / "sys" / setting).write_text(value + "\n")
        assert helps in checking._help(proc)

    def test_other_obstacles_are_named(self, tmp_path: Path) -> None:
        assert "--security-opt seccomp=unconfined" in checking._help(fake_proc(tmp_path / "container", Seccomp=2))
        assert "mount /proc" in checking._help(tmp_path / "nothing")
        (tmp_path / "old/self").mkdir(parents=True)
        assert "CONFIG_USER_NS" in checking._help(tmp_path / "old")

    def test_other_systems_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(UserError, match="only on Linux"):
            check()

    def test_what_the_sandbox_does_not_forbid_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Sandbox, "__init__", lambda *_, **__: None)
        monkeypatch.setattr(Sandbox, "wait", lambda _: Ended("exited", 0, json.dumps(["it runs as root"])))
        with pytest.raises(UserError, match="the sandbox would leak here: it runs as root"):
            check()
        monkeypatch.setattr(Sandbox, "wait", lambda _: Ended("exited", 1, "Fatal Python error: no encodings\n"))
        with pytest.raises(UserError, match=r"Python does not run in the sandbox \(exited 1\): Fatal Python error"):
            check()

    @pytest.mark.usefixtures("sandbox")
    @pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
    def test_an_ordinary_user_has_a_sandbox_too(self) -> None:
        code = f"import sys; sys.path.append({str(sandbox.ROOT)!r}); from {sandbox.PACKAGE}.check import check; check()"
        for python in (sandbox.launcher()[0], "/usr/bin/python3"):
            person: dict[str, Any] = {"user": 54321, "group": 54321, "extra_groups": [], "capture_output": True}
            try:
                version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], **person)
            except OSError:
                continue
            if version.stdout.strip() == b"True":
                done = subprocess.run([python, "-B", "-c", code], **person, text=True)
                assert (done.returncode, done.stderr) == (0, "")
                return
        pytest.skip("no Python that others than root may run")


def fake_proc(proc: Path, **status: int) -> Path:
    (proc / "self/ns").mkdir(parents=True)
    (proc / "self/ns/user").touch()
    (proc / "self/status").write_text("".join(f"{name}:\t{value}\n" for name, value in status.items()))
    return proc


@pytest.mark.usefixtures("sandbox")
class TestVerdict:
    def test_a_right_program_passes(self) -> None:
        assert grade_add_two(RIGHT) == "passed"

    def test_a_wrong_program_does_not_pass(self) -> None:
        assert grade_add_two("def add_two(x):\n    return 3\n") == "wrong answer"

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("def add_two(x):\n    return 1 / 0\n", "exception: ZeroDivisionError: division by zero"),
            ("def add_two(x)\n", "exception: SyntaxError: expected ':' (program.py, line 1)"),
            ("def add_three(x): ...\n", "exception: AttributeError: module 'program' has no attribute 'add_two'"),
            ("def add_two(x):\n    assert False\n", "exception: AssertionError"),
            ("def add_two(x):\n    return str(x)\n", "wrong answer"),
            ("def add_two(x):\n    raise SystemExit(0)\n", "exception: SystemExit: 0"),
            ("raise KeyboardInterrupt\n", "exception: KeyboardInterrupt"),
            ("def add_two(x):\n    raise ValueError('a\\n\\x1b[2Jb ' * 99)\n", None),
        ],
    )
    def test_an_exception_of_the_program_is_the_reason(self, program: str, reason: str | None) -> None:
        found = grade_add_two(program)
        assert found == reason or (reason is None and found.startswith("exception: ValueError: a [2Jb a"))
        assert found.isprintable()
        assert len(found) < 250

    def test_an_exception_of_the_tests_is_the_reason_too(self) -> None:
        test = "def check(candidate):\n    assert abs(candidate(1) - 3) < 1\n"
        assert grade_add_two("def add_two(x): ...\n", test).startswith("exception: TypeError: unsupported operand")

    def test_tests_use_the_helpers_of_the_prompt_not_of_the_program(self) -> None:
        prompt = f"def double(x):\n    return 2 * x\n\n{PROMPT}"
        test = "def check(candidate):\n    assert candidate(double(4)) == 10\n    assert add_two(1) == 3\n"
        forged = "def double(x): return 0\ndef add_two(x): return 10\n"
        assert grade(CandidateProgram(prompt + RIGHT, "add_two", prompt, test), LIMITS) == "passed"
        assert grade(CandidateProgram(forged, "add_two", prompt, test), LIMITS) == "wrong answer"

    def test_printing_and_dataclasses_and_a_few_threads_are_allowed(self) -> None:
        program = (
            "import dataclasses, threading\n"
            "@dataclasses.dataclass\nclass Box:\n    value: 'int'\n"
            "def add_two(x):\n    print('thinking', flush=True)\n    box = Box(x)\n"
            "    def work(): box.value += 2\n"
            "    thread = threading.Thread(target=work)\n    thread.start()\n    thread.join()\n"
            "    return box.value\n"
        )
        assert grade_add_two(program) == "passed"

    def test_a_program_of_megabytes_passes_too(self) -> None:
        assert grade_add_two("# " + "x" * (2 << 20) + "\n" + RIGHT) == "passed"


@pytest.mark.usefixtures("sandbox")
class TestEnd:
    def test_a_daemon_does_not_outlive_the_verdict(self, hostile: Hostile) -> None:
        daemon = (
            "import os, time\n"
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
            "        time.sleep(0.5)\n        open(CANARY, 'w').write('dead')\n        time.sleep(600)\n"
            "    os._exit(0)\n"
            "time.sleep(0.2)\n"
        )
        for ending in ("os._exit(0)\n", "def add_two(x):\n    return 3\n"):
            assert hostile(daemon + ending) in ("exited", "wrong answer")

    def test_a_daemon_ends_with_a_program_that_passes(self) -> None:
        name = uuid.uuid4().hex[:15]
        daemon = (
            f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, b{name!r}, 0, 0, 0)\n"
            "if os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n"
        )
        assert grade_add_two(daemon + RIGHT) == "passed"
        assert not processes_named(name)

    @pytest.mark.parametrize("where", ["", "def add_two(x):\n    "])
    @pytest.mark.parametrize("status", [0, 1])
    def test_a_program_that_exits_does_not_pass(self, hostile: Hostile, where: str, status: int) -> None:
        assert hostile(f"import os\n{where}os._exit({status})\n") == "exited"

    def test_a_program_that_closes_the_connection_does_not_pass(self, hostile: Hostile) -> None:
        assert hostile("import os\nos.closerange(0, 99)\nwhile True: pass\n", limits=Limits(seconds=1)) == "timed out"

    def test_signals_reach_no_other_process(self, hostile: Hostile) -> None:
        program = (
            "import os, signal\n"
            "for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):\n"
            "    for pid in (1, os.getppid(), -1):\n"
            "        try:\n            os.kill(pid, number)\n        except OSError:\n            pass\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert hostile(program) == "killed by signal 9"
        assert hostile("import ctypes\nctypes.string_at(0)\n") == "killed by signal 11"

    def test_a_limit_put_on_process_1_only_ends_the_program(self, hostile: Hostile) -> None:
        program = "import resource\nresource.prlimit(1, resource.RLIMIT_CPU, (0, 0))\nwhile True: pass\n"
        reason = hostile(program)
        assert reason.startswith(("exception: PermissionError", "killed by signal", "timed out"))

    def test_stopping_leaves_no_process(self) -> None:
        reads, writes = os.pipe()
        idle = idle_candidate(reads, writes)
        inner = innermost(idle)
        assert idle.stop() == idle.wait() == Ended("stopped")
        assert not psutil.pid_exists(inner)
        os.close(reads)
        os.close(writes)

    @pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
    def test_a_sandbox_ends_with_a_killed_parent(self, kills: int) -> None:
        """At any moment: while it is built, too, when the parent's death tells it nothing."""
        script = [sys.executable, str(Path(killed_parents.__file__)), str(kills), "7"]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        lived, left = zip(*(map(float, line.split()) for line in done.stdout.splitlines()), strict=True)
        assert len(lived) == kills
        assert max(left) > 1  # or there was nothing to end
        assert max(lived) < 1.0  # half a second, where no other work keeps the processors

    def test_a_killed_launcher_ends_its_sandbox(self) -> None:
        reads, writes = os.pipe()
        idle = idle_candidate(reads, writes)
        inner = innermost(idle)
        idle._process.kill()
        assert idle.wait(SETTLED).how in ("killed", "stopped")
        deadline = time.monotonic() + SETTLED
        while psutil.pid_exists(inner) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not psutil.pid_exists(inner)
        os.close(reads)
        os.close(writes)


class TestFilter:
    @pytest.mark.parametrize("machine", checking.MACHINES)
    def test_every_jump_of_the_filter_lands_in_it(self, machine: str) -> None:
        program = syscalls.build(machine)
        count, rest = divmod(len(program), 8)
        assert rest == 0
        assert count < 4096
        for place in range(count):
            code, if_true, if_false = (
                int.from_bytes(program[place * 8 : place * 8 + 2], "little"),
                *program[place * 8 + 2 : place * 8 + 4],
            )
            if code in (syscalls.EQUAL, syscalls.AT_LEAST, syscalls.ANY_BIT):
                assert place + 1 + max(if_true, if_false) < count
        assert set(syscalls.DENIED["x86_64"]) == set(syscalls.DENIED["aarch64"])

    def test_another_machine_is_not_known(self) -> None:
        with pytest.raises(KeyError):
            syscalls.build("riscv64")
