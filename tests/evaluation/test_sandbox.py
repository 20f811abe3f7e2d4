"""A hostile program in the sandbox changes nothing outside and cannot forge a verdict."""

from __future__ import annotations

import os
import socket
import sys
import uuid
from pathlib import Path

import pytest

from lora_ga_cli.evaluation.sandbox.sandbox import Limits
from tests.evaluation.programs import LIMITS, Hostile, idle_candidate, innermost


@pytest.mark.usefixtures("sandbox")
class TestResources:
    def test_a_fork_bomb_is_contained(self, hostile: Hostile) -> None:
        bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
        assert hostile(bomb, limits=Limits(seconds=1)) == "timed out"

    def test_processes_are_limited_in_number(self, hostile: Hostile) -> None:
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

    @pytest.mark.parametrize("flag", ["PRIVATE", "SHARED"])
    def test_the_memory_of_all_processes_together_is_limited(self, hostile: Hostile, flag: str) -> None:
        """Each of 40 processes stays far below the limit; without a limit on the sum they would live until the end."""
        hold = (
            "import mmap, os, time\nfor _ in range(40):\n    if os.fork() == 0:\n"
            f"        held = mmap.mmap(-1, 100 << 20, mmap.MAP_{flag} | mmap.MAP_ANONYMOUS)\n"
            "        for start in range(0, 100 << 20, 4096):\n            held[start] = 1\n"
            "        time.sleep(60)\ntime.sleep(60)\n"
        )
        assert hostile(hold, limits=Limits(seconds=20, memory=400 << 20, tasks=50)) == "memory"

    def test_processes_below_the_limit_of_all_are_left_alone(self, hostile: Hostile) -> None:
        hold = (
            "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n"
            "        held = bytearray(40 << 20)\n        time.sleep(0.5)\n        os._exit(0)\n"
            "while True:\n    try:\n        os.wait()\n    except ChildProcessError:\n        break\n"
            "raise RuntimeError('ended')\n"
        )
        assert hostile(hold, limits=Limits(seconds=20, memory=400 << 20)) == "exception: RuntimeError: ended"

    def test_memory_that_no_limit_counts_is_denied(self, hostile: Hostile) -> None:
        assert "PermissionError" in hostile("import os\nos.memfd_create('hidden')\n")
        shared = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            "raise RuntimeError(libc.shmget(0, 4096, 0o1600), ctypes.get_errno())\n"
        )
        assert hostile(shared) == "exception: RuntimeError: (-1, 1)"

    def test_files_are_limited_in_number_and_size(self, hostile: Hostile) -> None:
        large = "with open('large', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))\n"
        assert "File too large" in hostile(large)
        many = "for number in range(99):\n    open(str(number), 'wb').write(bytes(1 << 20))\n"
        assert "No space left" in hostile(many)
        tiny = "for number in range(9999):\n    open(str(number), 'wb').close()\n"
        assert "No space left" in hostile(tiny)

    @pytest.mark.parametrize("stream", ["stdout", "stderr"])
    def test_endless_output_is_stopped(self, hostile: Hostile, stream: str) -> None:
        assert hostile(f"import sys\nwhile True:\n    print('x' * 999, file=sys.{stream})\n") == "printed too much"

    def test_an_endless_answer_is_stopped(self, hostile: Hostile) -> None:
        assert "BadMessage" in hostile("def add_two(x):\n    return 'x' * (9 << 20)\n")
        raw = "import os\nwhile True:\n    os.write(4, b'[' * 65536)\n"
        assert "BadAnswer" in hostile(raw)
        assert hostile(
            "import itertools\ndef add_two(x):\n    return itertools.count()\n", limits=Limits(seconds=2)
        ) in (
            "memory",
            "timed out",
        )

    def test_standard_input_is_empty(self, hostile: Hostile) -> None:
        assert hostile("input()\n") == "exception: EOFError: EOF when reading a line"


@pytest.mark.usefixtures("sandbox")
class TestSecrets:
    def test_the_environment_is_empty(self, hostile: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_TOKEN", "hunter2")
        program = (
            "import ctypes, glob, os\n"
            "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
            "held = [environ[0]] if environ else []\n"
            "results = [open(path, 'rb').read() for path in glob.glob('/proc/*/environ')]\n"
            "raise RuntimeError(dict(os.environ), held, results)\n"
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

    def test_there_is_no_home_folder(self, hostile: Hostile) -> None:
        assert hostile("import os\nraise RuntimeError(os.path.expanduser('~'))\n") == "exception: RuntimeError: ~"

    def test_only_its_own_empty_folder_is_writable(self, hostile: Hostile) -> None:
        program = (
            "import os\n"
            "found = [path for path, folders, files in os.walk('/') for path in "
            "(path, *(os.path.join(path, file) for file in files)) if os.access(path, os.W_OK)]\n"
            "raise RuntimeError(found, os.getcwd(), os.listdir())\n"
        )
        assert hostile(program, limits=Limits(seconds=20)) == "exception: RuntimeError: (['/tmp'], '/tmp', [])"

    def test_deleting_files_deletes_none_outside(self, hostile: Hostile) -> None:
        program = (
            "import errno, os, shutil\nresults = []\n"
            "for action in (os.remove, shutil.rmtree, lambda path: open(path, 'w')):\n"
            "    try:\n        action(CANARY)\n    except OSError as error:\n        results.append(error.errno)\n"
            "shutil.rmtree('/', ignore_errors=True)\n"
            "raise RuntimeError(results, os.path.exists(os.__file__))\n"
        )
        assert hostile(program) == "exception: RuntimeError: ([2, 2, 2], True)"
        assert Path(os.__file__).exists()

    def test_there_is_no_network(self, hostile: Hostile) -> None:
        name = f"\0{uuid.uuid4().hex}"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(name)
            abstract.listen()
            program = (
                "import socket\nresults = []\n"
                f"for family, address in ((socket.AF_INET, {server.getsockname()!r}), (socket.AF_UNIX, {name!r})):\n"
                "    try:\n        socket.socket(family).connect(address)\n        results.append('connected')\n"
                "    except OSError as error:\n        results.append(error.errno)\n"
                "raise RuntimeError(results)\n"
            )
            assert hostile(program) == "exception: RuntimeError: [1, 1]"
            for listening in (server, abstract):
                listening.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listening.accept()

    def test_it_has_no_rights_and_namespaces_of_its_own(self) -> None:
        reads, writes = os.pipe()
        idle = idle_candidate(reads, writes)
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
    def test_system_calls_that_may_lead_out_are_denied(self, hostile: Hostile, call: str) -> None:
        program = (
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            f"raise RuntimeError(libc.{call}, ctypes.get_errno())\n"
        )  # fmt: skip
        assert hostile(program) == "exception: RuntimeError: (-1, 1)"

    def test_setuid_programs_give_nothing(self, hostile: Hostile) -> None:
        program = "import os\ntry:\n    os.setuid(0)\nexcept OSError as error:\n    raise RuntimeError(error.errno)\n"
        assert hostile(program) in ("exception: RuntimeError: 1", "exception: RuntimeError: 22")


@pytest.mark.usefixtures("sandbox")
class TestForgery:
    @pytest.mark.parametrize("base", ["object", "int", "float", "str", "list", "tuple", "dict", "Exception"])
    def test_an_object_that_claims_to_equal_everything_equals_nothing(self, hostile: Hostile, base: str) -> None:
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

    def test_patching_the_language_changes_nothing_for_the_grader(self, hostile: Hostile) -> None:
        program = (
            "import builtins, json, sys\n"
            "builtins.AssertionError = type('Nothing', (BaseException,), {})\n"
            "builtins.len = builtins.abs = builtins.isinstance = lambda *_: True\n"
            "json.dumps = lambda *_: '[\"ready\"]'\n"
            "sys.modules.clear()\n"
            "def add_two(x):\n    return 3\n"
        )
        hostile(program)

    def test_the_grader_cannot_be_reached(self, hostile: Hostile) -> None:
        program = (
            "import os\ndef add_two(x):\n"
            "    found = [pid for pid in range(2, 9999) if pid != os.getpid() and alive(pid)]\n"
            "    raise RuntimeError(found)\n"
            "def alive(pid):\n"
            "    try:\n        os.kill(pid, 0)\n    except OSError:\n        return False\n    return True\n"
        )
        assert hostile(program) == "exception: RuntimeError: []"
