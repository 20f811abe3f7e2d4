"""Lets disks fill up at random moments, and limits the size of files, and runs the same command again with room.

The disk is a small one in memory. What loraga checks before a step is switched off, as if another program filled the
disk after that check: so the write itself fails, at any file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from soaks._figure import Figure, at_least, at_most
from soaks._project import Done, loraga, make_base, make_rows, must, options, quickly, resource_limit, train_until

SIZES = (200, 60_000)
"""Bytes: the smallest and the largest limit on files. The largest file of the small project is larger."""
PAGE = 4096
ROOMY = 2**26
"""Bytes of a disk on which everything has room."""
INSIDE = "SOAK_IN_NAMESPACE"
"""Set in the process that may mount, because it has namespaces of its own."""
RUN = Path("disk/runs/mine")
COMMANDS = ("train", "resume", "merge")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--failures", type=int, default=200, help="how many commands run on a disk that fills up (200)")
    parser.add_argument("--limits", type=int, default=50, help="how many run with a limit on the size of files (50)")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Runs commands on small disks and with limits."""
    disk = Path("disk")
    disk.mkdir()
    refused = _mount(disk, ROOMY)
    if refused and INSIDE not in os.environ and shutil.which("unshare"):
        # with the rights of root in namespaces of its own, in which this kind runs as a whole
        again = ["unshare", "-Urm", sys.executable, *sys.argv]
        if subprocess.run([*again[:2], "true"], capture_output=True, check=False).returncode == 0:
            code = subprocess.run(again, env=os.environ | {INSIDE: "1"}, check=False).returncode
            yield Figure("all of this in namespaces of its own", "done" if code == 0 else "failed", "done", code == 0)
            return
    draw, project = random.Random(options.seed), Path.cwd()
    with quickly():
        try:
            expected = _expected(project)
            if refused:
                print(f"  skipped: no small disk can be mounted here ({refused})", flush=True)
            else:
                yield from _figures("a disk that filled up", _disks(options.failures, draw, project), expected)
            yield from _figures("a limit on the size of files", _limits(options.limits, draw, project), expected)
        finally:
            if not refused:
                subprocess.run(["umount", "-l", str(disk)], check=True)


@dataclass(frozen=True)
class Case:
    """A command that ran out of room, and the same command afterwards.

    Args:
        what: the command and its room, for people.
        words: those that the message has one of.
        changed: files that were there before and are not as they were.
        files: of the folder ``merged``, if it was there without being complete.
    """

    what: str
    first: Done
    words: tuple[str, ...]
    changed: int
    files: int
    left: int
    again: Done


def _given(project: Path) -> list[str]:
    return [*options(project), "output_dir=disk/runs", "cache_dir=disk/cache"]


def _expected(project: Path) -> dict[str, bytes]:
    make_base(project / "base")
    make_rows(project / "rows.jsonl")
    must("train", *_given(project))
    must("merge", str(RUN), "--output", "disk/merged")
    return _results()


def _results() -> dict[str, bytes]:
    files = (RUN / "adapter_model.safetensors", Path("disk/merged/model.safetensors"))
    return {str(file): file.read_bytes() for file in files if file.exists()}


def _prepare(command: str, project: Path) -> list[str]:
    """Puts on the disk what a command begins with, and returns its words."""
    train, kept = ["train", *_given(project)], Path(f"before-{command}")
    _clear()
    if kept.is_dir():
        shutil.copytree(kept, "disk", dirs_exist_ok=True)
    elif command != "train":
        if command == "resume":
            train_until(2, train[1:])
        else:
            must(*train)
        shutil.copytree("disk", kept)
    return ["merge", str(RUN), "--output", "disk/merged"] if command == "merge" else train


def _clear() -> None:
    for folder in ("runs", "cache", "merged"):
        shutil.rmtree(Path("disk") / folder, ignore_errors=True)


def _disks(count: int, draw: random.Random, project: Path) -> Iterator[tuple[str, Case]]:
    needed = {command: _needed(command, project) for command in COMMANDS}
    for _ in range(count):
        command = draw.choice(COMMANDS)
        words = _prepare(command, project)
        room = draw.randrange(PAGE, needed[command])

        def limited(room: int = room) -> contextlib.AbstractContextManager[None]:
            _mount(Path("disk"), _used() + room, "remount")
            return _unchecked()

        yield command, _case(f"{command} with {room} bytes free", words, limited, ("no space left",))


def _limits(count: int, draw: random.Random, project: Path) -> Iterator[tuple[str, Case]]:
    for _ in range(count):
        command = draw.choice(COMMANDS)
        words = _prepare(command, project)
        size = round(SIZES[0] * (SIZES[1] / SIZES[0]) ** draw.random())
        said = ("file too large",)
        yield (
            command,
            _case(
                f"{command} with files of {size} bytes",
                words,
                lambda size=size: resource_limit(resource.RLIMIT_FSIZE, size),
                said,
            ),
        )


def _needed(command: str, project: Path) -> int:
    """Bytes that a command takes on the disk."""
    words = _prepare(command, project)
    before = _used()
    must(*words)
    return _used() - before


def _case(
    what: str, words: list[str], limited: Callable[[], contextlib.AbstractContextManager[None]], said: tuple[str, ...]
) -> Case:
    before = _files()
    with limited():
        first = loraga(*words)
    after = _files()
    changed = sum(after.get(file) != content for file, content in before.items()) if first.code else 0
    merged = [file for file in after if file.is_relative_to("disk/merged")] if first.code else []
    left = len([*Path("disk").rglob(".*.tmp")])
    if Path("disk").is_mount():
        _mount(Path("disk"), ROOMY, "remount")
    return Case(what, first, said, changed, len(merged), left, loraga(*words) if first.code else first)


def _files() -> dict[Path, bytes]:
    """The weights and checkpoints that are there. Others, such as the metrics, are cut where a run goes on."""
    found = [
        *Path("disk/runs").rglob("*.safetensors"),
        *Path("disk/runs").rglob("*.pt"),
        *Path("disk/merged").rglob("*"),
    ]
    return {file: file.read_bytes() for file in found if file.is_file()}


def _figures(what: str, cases: Iterator[tuple[str, Case]], expected: dict[str, bytes]) -> Iterator[Figure]:
    found: Counter[str] = Counter()
    for command, case in cases:
        found["cases"] += 1
        first, again = case.first, case.again
        options = ("output_dir: ", "cache_dir: ", "--output: ")
        named = any(word in first.text for word in case.words) and any(option in first.text for option in options)
        wanted = {file: expected[file] for file in list(expected)[: 2 if command == "merge" else 1]}
        wrong = {
            "unexpected": first.code not in (0, 2) or "unexpected" in first.text or first.text.count("error ") > 1,
            "unnamed": first.code == 2 and not named,
            "left": case.left > 0,
            "changed": case.changed > 0 or case.files > 0,
            "other": again.code != 0 or any(_results().get(file) != content for file, content in wanted.items()),
        }
        found["failed"] += first.code != 0
        for name, is_wrong in wrong.items():
            found[name] += is_wrong
        if any(wrong.values()):
            names = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
            print(f"  {names}: {case.what}: exit {first.code}: {first.text[-300:]}", flush=True)
            print(f"    then exit {again.code}: {again.text[-200:]}", flush=True)
    yield Figure(f"commands with {what}", f"{found['cases']:,}")
    yield at_least("  of which: stopped by it", found["failed"], found["cases"] // 2)
    yield at_most("  not one line with exit code 2", found["unexpected"])
    yield at_most("  not what the system said, or without the option", found["unnamed"])
    yield at_most("  temporary files left", found["left"])
    yield at_most("  results or checkpoints changed, or a half merged model", found["changed"])
    yield at_most("  the same command does not go on, or to another result", found["other"])


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Nothing is found to speak against a folder before it is written."""
    with contextlib.ExitStack() as stack:
        for module in ("inputs", "initialize", "room"):
            stack.enter_context(mock.patch(f"lora_ga_cli.stages.{module}.folder_problem", return_value=None))
        stack.enter_context(mock.patch("lora_ga_cli.stages.room.disk_room", return_value=2**50))
        yield


def _mount(folder: Path, size: int, *more: str) -> str:
    """Mounts a disk in memory; returns what the system said against it."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join([*more, f"size={size}"]), "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()
    except FileNotFoundError:
        return "there is no program mount"


def _used() -> int:
    return shutil.disk_usage("disk").used
