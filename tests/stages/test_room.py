"""Full disks, limits on files and folders without permission: what was there stays, and the same command goes on."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ga_cli.files import atomic_file, atomic_folder
from lora_ga_cli.training.trainer import LoragaTrainer
from tests.helpers import Arguments, Loraga, only_run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Only 100 KB are free on every disk."""
    with monkeypatch.context() as patch:
        patch.setattr("lora_ga_cli.stages.room.disk_room", lambda folder: 100_000)
        yield patch


def test_a_disk_that_is_too_small_is_refused_before_the_step(
    no_room: pytest.MonkeyPatch, loraga: Loraga, arguments: Arguments
) -> None:
    printed = loraga("train", *arguments("llama", "method=lora"), code=2)
    assert "error  output_dir: runs" in printed
    assert "97.7 KiB are free on its disk, and about" in printed
    assert "(3 checkpoints of " in printed
    assert "train  step" not in printed
    printed = loraga("estimate-grad", *arguments("llama"), code=2)
    assert "error  cache_dir: " in printed
    assert "(the gradient artifact)" in printed
    no_room.undo()
    loraga("train", *arguments("llama", "method=lora"))
    no_room.setattr("lora_ga_cli.stages.room.disk_room", lambda folder: 100_000)
    printed = loraga("merge", str(only_run()), code=2)
    assert "error  --output: runs" in printed
    assert "(the merged model)" in printed


def test_a_disk_that_fills_up_leaves_what_was_there_and_the_same_command_goes_on(
    small_disk: Path, loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = arguments("llama", "method=lora", f"output_dir={small_disk}/runs")
    save, ballast = LoragaTrainer._save_checkpoint, small_disk / "ballast"

    def on_a_full_disk(trainer: LoragaTrainer, *rest: object) -> None:
        if trainer.state.global_step == 4:
            ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 50_000))
        save(trainer, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LoragaTrainer, "_save_checkpoint", on_a_full_disk)
        printed = loraga("train", *command, code=2)
    assert printed.count("error  ") == 1
    assert "error  output_dir: " in printed
    assert "no space left on device" in printed
    assert not list(small_disk.rglob(".*.tmp"))
    ballast.unlink()
    printed = loraga("train", *command)
    assert "resuming after step 2" in printed
    assert "finished in" in printed


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with atomic_file(tmp_path / "loss.png"), atomic_folder(tmp_path / "merged") as folder:
            (folder / "weights").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    live = tmp_path / ".live.12345678.tmp"
    live.touch()
    only_copy = tmp_path / ".gone.12345678.old"
    only_copy.mkdir()
    with live.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with atomic_file(tmp_path / "new") as temporary:
            temporary.touch()
        assert sorted(path.name for path in tmp_path.iterdir()) == [only_copy.name, live.name, "new"]


def test_a_run_of_another_user_is_scored_beside_and_merged_elsewhere(
    loraga: Loraga, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a mount that is read-only, since root may write everywhere else."""
    command = arguments("llama", "method=lora", "trainer.max_steps=2")
    loraga("train", *command)
    (tmp_path / "theirs").mkdir()
    bind = f"mount --bind {tmp_path}/runs {tmp_path}/theirs && mount -o remount,bind,ro {tmp_path}/theirs"
    if subprocess.run(["sh", "-c", bind], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a folder read-only here")
    try:
        run = only_run("theirs")
        assert "loss" in loraga("eval", str(run), "eval.limit=4")
        assert list(tmp_path.rglob(f"eval-{run.name}/*.json"))
        loraga("merge", str(run), "--output", "mine")
        assert (tmp_path / "mine" / "config.json").exists()
        assert "finished already: theirs" in loraga("train", *command, "output_dir=theirs")
        printed = loraga("train", *command, "output_dir=theirs", "name=another", code=2)
        assert "error  output_dir: theirs: read-only file system" in printed
        printed = loraga("merge", str(run), code=2)
        assert printed.count("error  --output: ") == 1
        assert "theirs" in printed.partition("error  ")[2]
        assert "read-only file system (nothing can be written there: give another --output)" in printed
    finally:
        subprocess.run(["umount", "-l", f"{tmp_path}/theirs"], check=True)


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_said(arguments: Arguments) -> None:
    command = [sys.executable, "-m", "lora_ga_cli", "train", *arguments("llama", "method=full")]
    code = "import resource, os, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2); "
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("error  ") == 1
    assert "output_dir" in done.stderr
