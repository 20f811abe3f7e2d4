"""Nothing on disk is ever half written."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_ga_cli import files


class Interrupted(Exception):
    pass


def test_an_atomic_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.txt"
    for text in ("old", "new"):
        with files.atomic_file(file) as temporary:
            assert temporary.parent == file.parent
            temporary.write_text(text, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == "new"
    assert list(file.parent.iterdir()) == [file]


def test_the_old_file_is_there_until_the_new_one_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("old", encoding="utf-8")
    with files.atomic_file(file) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("existed", [True, False])
def test_an_error_inside_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, existed: bool) -> None:
    file = tmp_path / "x.txt"
    if existed:
        file.write_text("old", encoding="utf-8")

    def write() -> None:
        with files.atomic_file(file) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise Interrupted

    with pytest.raises(Interrupted):
        write()
    assert [item.read_text(encoding="utf-8") for item in tmp_path.iterdir()] == (["old"] if existed else [])


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_all_of_a_written_folder_is_as_readable_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    """Whatever wrote the files inside: safetensors makes private ones."""
    before = os.umask(umask)
    try:
        with files.atomic_folder(tmp_path / "atomic") as temporary:
            (temporary / "inner").mkdir(mode=0o700)
            for name in ("weights", "inner/weights"):
                (temporary / name).touch(mode=0o600)
    finally:
        os.umask(before)
    modes = {str(item.relative_to(tmp_path)): item.stat().st_mode & 0o777 for item in tmp_path.rglob("*")}
    folder, file = 0o777 & ~umask, 0o666 & ~umask
    assert modes == {
        "atomic": folder,
        "atomic/inner": folder,
        "atomic/weights": file,
        "atomic/inner/weights": file,
    }


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    with files.atomic_file(tmp_path / "atomic") as temporary:
        temporary.write_text("x", encoding="utf-8")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_an_atomic_folder_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "x"
    for name in ("old", "new"):
        with files.atomic_folder(folder) as temporary:
            (temporary / name).write_text(name, encoding="utf-8")
    assert [item.name for item in folder.iterdir()] == ["new"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("existed", [True, False])
def test_an_error_inside_leaves_the_old_folder_and_no_temporary_one(tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "x"
    if existed:
        folder.mkdir()
        (folder / "old").touch()

    def write() -> None:
        with files.atomic_folder(folder) as temporary:
            (temporary / "half").touch()
            raise Interrupted

    with pytest.raises(Interrupted):
        write()
    assert [item.name for item in tmp_path.rglob("*")] == (["x", "old"] if existed else [])


def test_checksums_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_setting_aside_never_overwrites(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        (tmp_path / "x").write_text(str(number), encoding="utf-8")
        names.append(files.set_aside(tmp_path / "x", "old").name)
    assert names == ["x.old", "x.old-2", "x.old-3"]
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in names] == ["0", "1", "2"]


def test_file_sizes_are_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    (tmp_path / "c").touch()
    assert files.file_sizes(tmp_path) == {"a/b": 3, "c": 0}


def test_messages_have_no_names_of_temporary_files(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "merged") as folder, files.atomic_file(folder / "a.json") as file:
        assert file.name != "a.json"
        assert files.final_path(file) == tmp_path / "merged" / "a.json"
    assert files.final_path(".hidden.tmp") == Path(".hidden.tmp")


def test_threads_that_write_beside_one_another_do_not_remove_what_others_write(tmp_path: Path) -> None:
    def write(thread: int) -> None:
        for number in range(60):
            with files.atomic_file(tmp_path / f"{thread}-{number}") as temporary:
                temporary.write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(list(tmp_path.iterdir())) == 8 * 60
