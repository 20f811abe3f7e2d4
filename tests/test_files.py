"""Nothing on disk is ever half written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_ga_cli import files
from lora_ga_cli.errors import DamagedFile, UserError


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


def test_json_keeps_values_order_and_letters(tmp_path: Path) -> None:
    value = {"z": 0.1 + 0.2, "a": ["größe", None, True], "n": {"x": 1}}
    files.write_json(tmp_path / "x.json", value)
    assert files.read_json(tmp_path / "x.json") == value
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "größe" in text
    assert text.index('"z"') < text.index('"a"')


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x.json", {"a": object()})
    assert files.read_json(tmp_path / "x.json") == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_checksums_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_a_json_checksum_does_not_depend_on_the_order_of_keys_but_of_items() -> None:
    assert files.sha256_json({"a": 1, "b": [1, 2]}) == files.sha256_json({"b": [1, 2], "a": 1})
    assert files.sha256_json({"a": [1, 2]}) != files.sha256_json({"a": [2, 1]})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": "1"})


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


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [("here", "there", "here"), (None, "there", "there"), (None, None, "/xdg/loraga"), ("~/c", None, "home/c")],
)
def test_the_cache_is_as_configured_else_the_variable_else_the_systems(
    configured: str | None, variable: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "home")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.delenv("LORAGA_CACHE", raising=False)
    if variable:
        monkeypatch.setenv("LORAGA_CACHE", variable)
    assert files.cache_root(configured) == Path(expected)


@pytest.mark.parametrize("value", [None, "", "relative/folder"])
def test_a_cache_variable_that_is_empty_or_relative_counts_as_not_set(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LORAGA_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert files.cache_root("") == files.cache_root(None) == Path("/home/me/.cache/loraga")


def test_empty_variables_of_other_caches_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library would write into the current folder."""
    for name, value in {"HF_HOME": "", "XDG_CACHE_HOME": "", "TORCH_HOME": "/torch"}.items():
        monkeypatch.setenv(name, value)
    files.forget_empty_variables()
    assert [name for name in ("HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME") if name in os.environ] == ["TORCH_HOME"]


def test_what_speaks_against_a_folder_is_found_without_creating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert files.folder_problem(tmp_path / "new" / "deep") is None
    codes = {
        tmp_path / "file": errno.ENOTDIR,
        tmp_path / "file" / "deep" / "er": errno.ENOTDIR,
        tmp_path / ("x" * 300): errno.ENAMETOOLONG,
    }
    for folder, code in codes.items():
        problem = files.folder_problem(folder)
        assert problem is not None
        assert problem.errno == code
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    assert files.folder_problem(tmp_path / "new").errno == errno.EACCES  # type: ignore[union-attr]
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_speaks_against_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    problem = files.folder_problem(tmp_path)
    assert problem is not None
    assert problem.errno == errno.ENOSPC
    assert problem.strerror == "No space left on device, 1000 B are free now"


def test_a_cache_that_may_only_be_read_gives_way_to_the_next_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    team, own = tmp_path / "team", tmp_path / "own"
    team.mkdir()
    monkeypatch.setenv("LORAGA_CACHE", str(own))
    assert (files.cache_root(str(team)), files.shared_cache(str(team))) == (team, None)
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != team or not mode & os.W_OK)
    assert (files.cache_root(str(team)), files.shared_cache(str(team))) == (own, team)
    monkeypatch.setenv("LORAGA_CACHE", str(team))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (files.cache_root(None), files.shared_cache(None)) == (tmp_path / "xdg" / "loraga", team)
    missing = str(tmp_path / "missing")  # it is made
    assert (files.cache_root(missing), files.shared_cache(missing)) == (Path(missing), None)


def test_messages_have_no_names_of_temporary_files(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "merged") as folder, files.atomic_file(folder / "a.json") as file:
        assert file.name != "a.json"
        assert files.final_path(file) == tmp_path / "merged" / "a.json"
    assert files.final_path(".hidden.tmp") == Path(".hidden.tmp")


def test_bundled_paths_are_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert files.resolve_path("bundled:quickstart/train.jsonl") == files.ASSETS / "quickstart" / "train.jsonl"
    assert files.resolve_path("~/x") == Path("/home/me/x")
    assert files.resolve_path("x") == Path("x")


@pytest.mark.parametrize("path", ["bundled:/etc/passwd", "bundled:../files.py", "bundled:quickstart/../../files.py"])
def test_bundled_paths_stay_in_the_package(path: str) -> None:
    with pytest.raises(UserError, match="leaves"):
        files.resolve_path(path)


@pytest.mark.parametrize("text", ["", ".", "..", ".hidden", "a/b", "a\\b", "/a", "C:", "~", "a\0b"])
def test_a_text_that_is_not_one_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="one plain name"):
        files.one_name(text)


def test_a_name_leaves_room_for_what_is_added_to_it() -> None:
    """Temporary and replaced folders have longer names; a character may take several bytes."""
    assert files.one_name("x" * 200)
    for text in ("x" * 201, "é" * 101):
        with pytest.raises(ValueError, match=r"too long: 20[12] bytes, and a folder's name may have 200"):
            files.one_name(text)


def test_json_on_disk_is_plain_json(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"a": 1}


@pytest.mark.parametrize("value", [{"a": [1, 2.5e-05], "ü": {"b": None, "sha256": "f" * 64}}, {}])
def test_every_flipped_bit_and_every_cut_of_json_with_a_digest_is_noticed(tmp_path: Path, value: object) -> None:
    file = tmp_path / "x.json"
    files.write_json(file, value, digest=True)
    assert files.read_json(file) == value
    written = file.read_bytes()
    for bit in range(8 * len(written)):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(DamagedFile, match=r"x\.json is damaged"):
            files.read_json(file)
    for length in range(len(written)):
        file.write_bytes(written[:length])
        with pytest.raises(DamagedFile, match=r"x\.json is damaged"):
            files.read_json(file)


def test_json_with_a_digest_is_json_for_other_programs(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"a": 1}, digest=True)
    first, rest = (tmp_path / "x.json").read_bytes().split(b"\n", maxsplit=2)[1:]
    stored = json.loads((tmp_path / "x.json").read_bytes())
    assert stored == {"content_sha256": hashlib.sha256(rest).hexdigest(), "a": 1}
    assert b"content_sha256" in first


def test_a_damaged_memo_of_digests_is_dropped_with_a_message(tmp_path: Path) -> None:
    said: list[str] = []
    memo = tmp_path / "memo.json"
    files.drop_damaged(memo, said.append)
    files.write_json(memo, {"a": "b"}, digest=True)
    files.drop_damaged(memo, said.append)
    assert memo.exists()
    memo.write_bytes(memo.read_bytes().replace(b"b", b"c"))
    files.drop_damaged(memo, said.append)
    assert not memo.exists()
    assert len(said) == 1
    assert "computed again" in said[0]


def test_a_digest_that_another_process_remembers_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo, mine, other = tmp_path / "digests.json", tmp_path / "mine", tmp_path / "other"
    for file in (mine, other):
        file.write_text("x", encoding="utf-8")
        os.utime(file, (1, 1))
    compute = files.sha256_file

    def while_another_works(file: Path) -> str:
        if file == mine:
            files.remembered_sha256(other, memo)
        return compute(file)

    monkeypatch.setattr(files, "sha256_file", while_another_works)
    files.remembered_sha256(mine, memo)
    assert [Path(entry.partition("|")[0]).name for entry in files.read_json(memo)] == ["other", "mine"]


def test_threads_that_write_beside_one_another_do_not_remove_what_others_write(tmp_path: Path) -> None:
    def write(thread: int) -> None:
        for number in range(60):
            with files.atomic_file(tmp_path / f"{thread}-{number}") as temporary:
                temporary.write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(list(tmp_path.iterdir())) == 8 * 60
