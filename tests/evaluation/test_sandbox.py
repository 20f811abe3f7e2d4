"""The sandbox: what a hostile program tries in it fails, touches nothing, and cannot forge a verdict."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lora_ga_cli.errors import UserError
from lora_ga_cli.evaluation.sandbox import box, syscalls
from lora_ga_cli.evaluation.sandbox import check as checking
from lora_ga_cli.evaluation.sandbox.box import Box, Ended, Limits
from lora_ga_cli.evaluation.sandbox.check import check
from lora_ga_cli.evaluation.sandbox.verdict import Trial, judge

Hostile = Callable[..., str]
PROMPT = "def add_two(x):\n    '''Adds two.'''\n"
TEST = "def check(candidate):\n    for x in (1, 20, -5):\n        assert candidate(x) == x + 2\n"
RIGHT = "def add_two(x):\n    return x + 2\n"
LIMITS = Limits(seconds=20)
SETTLED = 5.0
"""Seconds in which a process that was killed must have vanished."""


def missing() -> str:
    """Why the kernel allows no sandbox here; empty if it does, and then the tests insist on a good one."""
    try:
        check()
    except UserError as error:
        forbidden = re.search("(creating namespaces|mapping|mounting|changing the root).* was refused", str(error))
        return str(error) if forbidden or "only on Linux" in str(error) else ""
    return ""


MISSING = missing()
needs_sandbox = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def trial(program: str, test: str = TEST, limits: Limits = LIMITS) -> str:
    return judge(Trial(program, "add_two", PROMPT, test), limits)


def processes_named(name: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == name:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    """Runs a program with a name of its own; asserts that it fails, leaves no process, and touches no file outside."""
    canary = tmp_path / "canary.txt"
    canary.write_text("alive")
    before = sorted(tmp_path.rglob("*"))

    def run(program: str, **more: Any) -> str:
        name = uuid.uuid4().hex[:15]
        mark = f"import ctypes; ctypes.CDLL(None).prctl(15, b{name!r}, 0, 0, 0)\nCANARY = {str(canary)!r}\n"
        reason = trial(mark + program, **more)
        assert reason != "passed"
        assert not processes_named(name)
        return reason

    yield run
    assert canary.read_text() == "alive"
    assert sorted(tmp_path.rglob("*")) == before


class TestCheck:
    @needs_sandbox
    def test_it_passes_where_there_is_a_sandbox(self) -> None:
        check()

    def test_a_kernel_without_namespaces_is_refused_with_the_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse = "def refuse(flags): raise kernel.Refused('creating namespaces', 1)\n"
        patch = f"from {box.PACKAGE} import kernel\n{refuse}kernel.unshare = refuse\n"
        start = f"import sys; sys.path.append(sys.argv[1])\n{patch}from {box.PACKAGE}.launch import main; main()"
        monkeypatch.setattr(box, "START", start)
        monkeypatch.setattr(checking, "_help", lambda: "as root: sysctl -w user.max_user_namespaces=16384")
        with pytest.raises(UserError) as raised:
            check()
        assert str(raised.value) == (
            "no sandbox for programs can be made here: creating namespaces was refused: Operation not permitted "
            "(as root: sysctl -w user.max_user_namespaces=16384)"
        )
        with pytest.raises(UserError, match="creating namespaces was refused"):
            trial(RIGHT)

    def test_a_launcher_that_breaks_is_refused_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(box, "START", "raise ImportError('no ctypes')")
        with pytest.raises(UserError, match=r"building a box \(ImportError: no ctypes\) was refused"):
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

    def test_what_else_forbids_is_named(self, tmp_path: Path) -> None:
        assert "--security-opt seccomp=unconfined" in checking._help(fake_proc(tmp_path / "container", Seccomp=2))
        assert "mount /proc" in checking._help(tmp_path / "nothing")
        (tmp_path / "old/self").mkdir(parents=True)
        assert "CONFIG_USER_NS" in checking._help(tmp_path / "old")

    def test_other_systems_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "platform", "darwin")
        with pytest.raises(UserError, match="only on Linux"):
            check()

    def test_holes_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Box, "__init__", lambda *_, **__: None)
        monkeypatch.setattr(Box, "wait", lambda _: Ended("exited", 0, json.dumps(["it runs as root"])))
        with pytest.raises(UserError, match="the sandbox would leak here: it runs as root"):
            check()
        monkeypatch.setattr(Box, "wait", lambda _: Ended("exited", 1, "Fatal Python error: no encodings\n"))
        with pytest.raises(UserError, match=r"Python does not run in the sandbox \(exited 1\): Fatal Python error"):
            check()

    @needs_sandbox
    @pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
    def test_an_ordinary_user_has_it_too(self) -> None:
        code = f"import sys; sys.path.append({str(box.ROOT)!r}); from {box.PACKAGE}.check import check; check()"
        for python in (box.launcher()[0], "/usr/bin/python3"):
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


@needs_sandbox
class TestTrial:
    def test_a_right_program_passes(self) -> None:
        assert trial(RIGHT) == "passed"

    def test_a_wrong_one_does_not(self) -> None:
        assert trial("def add_two(x):\n    return 3\n") == "wrong answer"

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
    def test_an_exception_is_the_programs_and_is_told(self, program: str, reason: str | None) -> None:
        found = trial(program)
        assert found == reason or (reason is None and found.startswith("exception: ValueError: a [2Jb a"))
        assert found.isprintable()
        assert len(found) < 250

    def test_what_the_tests_raise_is_told_too(self) -> None:
        test = "def check(candidate):\n    assert abs(candidate(1) - 3) < 1\n"
        assert trial("def add_two(x): ...\n", test).startswith("exception: TypeError: unsupported operand")

    def test_tests_use_the_helpers_of_the_prompt_not_of_the_program(self) -> None:
        prompt = f"def double(x):\n    return 2 * x\n\n{PROMPT}"
        test = "def check(candidate):\n    assert candidate(double(4)) == 10\n    assert add_two(1) == 3\n"
        forged = "def double(x): return 0\ndef add_two(x): return 10\n"
        assert judge(Trial(prompt + RIGHT, "add_two", prompt, test), LIMITS) == "passed"
        assert judge(Trial(forged, "add_two", prompt, test), LIMITS) == "wrong answer"

    def test_printing_and_dataclasses_and_a_few_threads_are_no_offence(self) -> None:
        program = (
            "import dataclasses, threading\n"
            "@dataclasses.dataclass\nclass Box:\n    value: 'int'\n"
            "def add_two(x):\n    print('thinking', flush=True)\n    box = Box(x)\n"
            "    def work(): box.value += 2\n"
            "    thread = threading.Thread(target=work)\n    thread.start()\n    thread.join()\n"
            "    return box.value\n"
        )
        assert trial(program) == "passed"

    def test_a_program_of_megabytes_passes_too(self) -> None:
        assert trial("# " + "x" * (2 << 20) + "\n" + RIGHT) == "passed"


@needs_sandbox
class TestResources:
    def test_a_fork_bomb_is_contained(self, hostile: Hostile) -> None:
        bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
        assert hostile(bomb, limits=Limits(seconds=1)) == "timed out"

    def test_processes_are_few(self, hostile: Hostile) -> None:
        count = (
            "import os, time\nstarted = 0\nwhile True:\n    try:\n"
            "        if os.fork() == 0:\n            time.sleep(60)\n        started += 1\n"
            "    except OSError:\n        raise RuntimeError(started)\n"
        )
        reason = hostile(count)
        assert 0 < int(reason.removeprefix("exception: RuntimeError: ")) <= LIMITS.tasks + 2

    @pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(600)"])
    def test_an_endless_program_times_out(self, hostile: Hostile, program: str) -> None:
        assert hostile(program, limits=Limits(seconds=1)) == "timed out"
        inside = f"def add_two(x):\n    {program.splitlines()[-1]}\n"
        assert hostile(f"import time\n{inside}", limits=Limits(seconds=1)) == "timed out"

    def test_a_huge_allocation_fails(self, hostile: Hostile) -> None:
        assert hostile("def add_two(x):\n    return bytearray(10 << 30)\n") == "memory"
        assert hostile("chunks = []\nwhile True:\n    chunks.append(bytearray(1 << 20))\n") == "memory"

    def test_memory_that_no_limit_counts_cannot_be_had(self, hostile: Hostile) -> None:
        assert "PermissionError" in hostile("import os\nos.memfd_create('hidden')\n")
        shared = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            "raise RuntimeError(libc.shmget(0, 4096, 0o1600), ctypes.get_errno())\n"
        )
        assert hostile(shared) == "exception: RuntimeError: (-1, 1)"

    def test_files_are_few_and_small(self, hostile: Hostile) -> None:
        large = "with open('large', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))\n"
        assert "File too large" in hostile(large)
        many = "for number in range(99):\n    open(str(number), 'wb').write(bytes(1 << 20))\n"
        assert "No space left" in hostile(many)
        tiny = "for number in range(9999):\n    open(str(number), 'wb').close()\n"
        assert "No space left" in hostile(tiny)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_endless_output_is_cut(self, hostile: Hostile, stream: str) -> None:
        assert hostile(f"import sys\nwhile True:\n    print('x' * 999, file=sys.{stream})\n") == "printed too much"

    def test_an_endless_answer_is_cut(self, hostile: Hostile) -> None:
        assert "BadMessage" in hostile("def add_two(x):\n    return 'x' * (9 << 20)\n")
        raw = "import os\nwhile True:\n    os.write(4, b'[' * 65536)\n"
        assert "BadAnswer" in hostile(raw)
        assert hostile("import itertools\ndef add_two(x):\n    return itertools.count()\n") in ("memory", "timed out")

    def test_standard_input_is_empty(self, hostile: Hostile) -> None:
        assert hostile("input()\n") == "exception: EOFError: EOF when reading a line"


@needs_sandbox
class TestSecrets:
    def test_the_environment_is_empty(self, hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "hunter2")
        program = (
            "import ctypes, glob, os\n"
            "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
            "held = [environ[0]] if environ else []\n"
            "told = [open(path, 'rb').read() for path in glob.glob('/proc/*/environ')]\n"
            "raise RuntimeError(dict(os.environ), held, told)\n"
        )
        reason = hostile(program)
        assert reason == "exception: RuntimeError: ({}, [None], [])"

    def test_files_outside_are_not_there(self, hostile: Hostile, tmp_path: Path) -> None:
        home = Path.home()
        paths = [str(Path(__file__)), str(tmp_path), "/etc/passwd", "/etc/shadow", "/proc/self", "/sys/fs", "/dev/null"]
        if home.is_dir() and home != Path("/"):
            paths += [str(item) for item in home.iterdir() if not sys.base_prefix.startswith(str(item))]
        program = f"import os\nraise RuntimeError([path for path in {paths!r} if os.path.lexists(path)])\n"
        assert hostile(program) == "exception: RuntimeError: []"

    def test_there_is_no_home(self, hostile: Hostile) -> None:
        assert hostile("import os\nraise RuntimeError(os.path.expanduser('~'))\n") == "exception: RuntimeError: ~"

    def test_it_can_write_nowhere_but_in_its_empty_folder(self, hostile: Hostile) -> None:
        program = (
            "import os\n"
            "found = [path for path, folders, files in os.walk('/') for path in "
            "(path, *(os.path.join(path, file) for file in files)) if os.access(path, os.W_OK)]\n"
            "raise RuntimeError(found, os.getcwd(), os.listdir())\n"
        )
        assert hostile(program, limits=Limits(seconds=20)) == "exception: RuntimeError: (['/tmp'], '/tmp', [])"

    def test_deletion_deletes_nothing(self, hostile: Hostile) -> None:
        program = (
            "import errno, os, shutil\ntold = []\n"
            "for action in (os.remove, shutil.rmtree, lambda path: open(path, 'w')):\n"
            "    try:\n        action(CANARY)\n    except OSError as error:\n        told.append(error.errno)\n"
            "shutil.rmtree('/', ignore_errors=True)\n"
            "raise RuntimeError(told, os.path.exists(os.__file__))\n"
        )
        assert hostile(program) == "exception: RuntimeError: ([2, 2, 2], True)"
        assert Path(os.__file__).exists()

    def test_the_network_is_not_there(self, hostile: Hostile) -> None:
        name = f"\0{uuid.uuid4().hex}"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(name)
            abstract.listen()
            program = (
                "import socket\ntold = []\n"
                f"for family, address in ((socket.AF_INET, {server.getsockname()!r}), (socket.AF_UNIX, {name!r})):\n"
                "    try:\n        socket.socket(family).connect(address)\n        told.append('connected')\n"
                "    except OSError as error:\n        told.append(error.errno)\n"
                "raise RuntimeError(told)\n"
            )
            assert hostile(program) == "exception: RuntimeError: [1, 1]"
            for listening in (server, abstract):
                listening.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listening.accept()

    def test_it_has_no_rights_and_namespaces_of_its_own(self) -> None:
        reads, writes = os.pipe()
        idle = Box(["candidate", "wire"], {"program.py": ""}, limits=Limits(seconds=60), channels=[reads, writes])
        try:
            inner = innermost(idle)
            status = Path(f"/proc/{inner}/status").read_text()
            fields = dict(line.split(":\t", 1) for line in status.splitlines())
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(fields[name], 16) == 0
            assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
            assert "0" not in fields["Uid"].split()
            for name in ("user", "mnt", "pid", "net", "ipc", "uts"):
                assert Path(f"/proc/{inner}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()
        finally:
            assert idle.stop().how == "stopped"
            os.close(reads)
            os.close(writes)

    @pytest.mark.parametrize(
        "call",
        [
            "unshare(0x10000000)",
            "mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
            "chroot(b'/tmp')",
            "ptrace(16, 1, 0, 0)",
            "setns(0, 0)",
        ],
    )
    def test_what_may_lead_out_is_denied(self, hostile: Hostile, call: str) -> None:
        program = (
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"raise RuntimeError(libc.{call}, ctypes.get_errno())\n"
        )  # fmt: skip
        assert hostile(program) == "exception: RuntimeError: (-1, 1)"

    def test_setuid_programs_give_nothing(self, hostile: Hostile) -> None:
        program = "import os\ntry:\n    os.setuid(0)\nexcept OSError as error:\n    raise RuntimeError(error.errno)\n"
        assert hostile(program) in ("exception: RuntimeError: 1", "exception: RuntimeError: 22")


def innermost(running: Box) -> int:
    """The process of the boxed program, once it is there."""
    deadline = time.monotonic() + 30
    outer = psutil.Process(running._process.pid)
    while time.monotonic() < deadline:
        found = [child for child in outer.children(recursive=True) if any("candidate" in part for part in argv(child))]
        if found:
            return found[0].pid
        time.sleep(0.02)
    raise AssertionError("the program did not start")


def argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@needs_sandbox
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
        assert trial(daemon + RIGHT) == "passed"
        assert not processes_named(name)

    @pytest.mark.parametrize("where", ["", "def add_two(x):\n    "])
    @pytest.mark.parametrize("status", [0, 1])
    def test_leaving_is_no_pass(self, hostile: Hostile, where: str, status: int) -> None:
        assert hostile(f"import os\n{where}os._exit({status})\n") == "exited"

    def test_falling_silent_is_no_pass(self, hostile: Hostile) -> None:
        assert hostile("import os\nos.closerange(0, 99)\nwhile True: pass\n", limits=Limits(seconds=1)) == "timed out"

    def test_signals_reach_nobody_else(self, hostile: Hostile) -> None:
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

    def test_stopping_leaves_nobody(self) -> None:
        reads, writes = os.pipe()
        idle = Box(["candidate", "wire"], {"program.py": ""}, limits=Limits(seconds=60), channels=[reads, writes])
        inner = innermost(idle)
        assert idle.stop() == idle.wait() == Ended("stopped")
        assert not psutil.pid_exists(inner)
        os.close(reads)
        os.close(writes)

    def test_a_killed_launcher_takes_the_box_with_it(self) -> None:
        reads, writes = os.pipe()
        idle = Box(["candidate", "wire"], {"program.py": ""}, limits=Limits(seconds=60), channels=[reads, writes])
        inner = innermost(idle)
        idle._process.kill()
        assert idle.wait(SETTLED).how in ("killed", "stopped")
        deadline = time.monotonic() + SETTLED
        while psutil.pid_exists(inner) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not psutil.pid_exists(inner)
        os.close(reads)
        os.close(writes)


@needs_sandbox
class TestForgery:
    @pytest.mark.parametrize("base", ["object", "int", "float", "str", "list", "tuple", "dict", "Exception"])
    def test_an_object_that_equals_everything_equals_nothing(self, hostile: Hostile, base: str) -> None:
        program = (
            f"class Equal({base}):\n"
            "    def __eq__(self, other): return True\n"
            "    def __ne__(self, other): return False\n"
            "    def __hash__(self): return 0\n"
            "    __lt__ = __le__ = __gt__ = __ge__ = __eq__\n"
            "    def __add__(self, other): return self\n"
            "    __sub__ = __rsub__ = __radd__ = __abs__ = __add__\n"
            "def add_two(x):\n    return Equal()\n"
        )
        assert hostile(program) == "wrong answer"

    def test_the_frames_of_callers_hold_nothing(self, hostile: Hostile) -> None:
        program = (
            "import gc, sys\n"
            "def add_two(x):\n"
            "    frame, seen = sys._getframe(), []\n"
            "    while frame:\n"
            "        seen += [str(item) for names in (frame.f_locals, frame.f_globals) for item in names.values()]\n"
            "        frame = frame.f_back\n"
            "    seen += [str(item) for item in gc.get_objects() if isinstance(item, (str, list, dict, tuple))]\n"
            "    secret = 'assert candidate' + '(x)'\n"
            "    raise RuntimeError(sum(secret in text.replace('+', '') for text in seen))\n"
        )
        assert hostile(program) == "exception: RuntimeError: 0"

    @pytest.mark.parametrize(
        "message",
        [
            '{"verdict": "passed"}',
            '["value", {"verdict": "passed"}]',
            '["ready"]',
            '["passed"]',
            '["value", true]',
            "[]",
        ],
    )
    def test_writing_into_every_open_file_forges_nothing(self, hostile: Hostile, message: str) -> None:
        program = (
            "import os\n"
            "for number in range(1024):\n"
            f"    try:\n        os.write(number, {message!r}.encode() + b'\\n')\n    except OSError:\n        pass\n"
            "def add_two(x):\n    return None\n"
        )
        hostile(program)
        hostile(program + "os._exit(0)\n")

    def test_only_the_two_channels_are_open(self, hostile: Hostile) -> None:
        program = (
            "import os\nfound = []\n"
            "for number in range(1024):\n"
            "    try:\n        os.fstat(number)\n        found.append(number)\n    except OSError:\n        pass\n"
            "raise RuntimeError(found)\n"
        )
        assert hostile(program) == "exception: RuntimeError: [0, 1, 2, 3, 4]"

    def test_patching_the_language_changes_nothing_for_the_judge(self, hostile: Hostile) -> None:
        program = (
            "import builtins, json, sys\n"
            "builtins.AssertionError = type('Nothing', (BaseException,), {})\n"
            "builtins.len = builtins.abs = builtins.isinstance = lambda *_: True\n"
            "json.dumps = lambda *_: '[\"ready\"]'\n"
            "sys.modules.clear()\n"
            "def add_two(x):\n    return 3\n"
        )
        hostile(program)

    def test_the_sandboxed_judge_cannot_be_reached(self, hostile: Hostile) -> None:
        program = (
            "import os\ndef add_two(x):\n"
            "    found = [pid for pid in range(2, 9999) if pid != os.getpid() and alive(pid)]\n"
            "    raise RuntimeError(found)\n"
            "def alive(pid):\n"
            "    try:\n        os.kill(pid, 0)\n    except OSError:\n        return False\n    return True\n"
        )
        assert hostile(program) == "exception: RuntimeError: []"


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
