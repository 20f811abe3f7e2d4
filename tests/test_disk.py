"""What speaks against a folder is found without writing into it."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_ga_cli import disk


def test_what_speaks_against_a_folder_is_found_without_creating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert disk.folder_problem(tmp_path / "new" / "deep") is None
    codes = {
        tmp_path / "file": errno.ENOTDIR,
        tmp_path / "file" / "deep" / "er": errno.ENOTDIR,
        tmp_path / ("x" * 300): errno.ENAMETOOLONG,
    }
    for folder, code in codes.items():
        problem = disk.folder_problem(folder)
        assert problem is not None
        assert problem.errno == code
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert disk.folder_problem(tmp_path / "new").errno == errno.EACCES  # type: ignore[union-attr]
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_speaks_against_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    problem = disk.folder_problem(tmp_path)
    assert problem is not None
    assert problem.errno == errno.ENOSPC
    assert problem.strerror == "No space left on device, 1000 B are free now"
