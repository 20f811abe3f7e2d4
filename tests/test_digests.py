"""A file is compared with what it was when it was written."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from lora_ga_cli.digests import check_files, damage, written, written_in
from lora_ga_cli.errors import DamagedFile


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1234")
    expected = written(file)
    assert damage(file, expected) == ""
    file.write_bytes(b"1235")
    assert damage(file, expected) == "does not have the bytes that were written"
    file.write_bytes(b"123")
    assert damage(file, expected) == "has 3 bytes and was written with 4"
    file.unlink()
    assert damage(file, expected) == "is missing"


def test_the_first_damaged_file_is_named_with_what_makes_it_anew(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    expected = written_in(tmp_path, ["a", "b"])
    check_files(tmp_path, expected, "make it again")
    (tmp_path / "b").write_text("c")
    with pytest.raises(DamagedFile) as caught:
        check_files(tmp_path, expected, "make it again")
    assert str(caught.value) == f"{tmp_path / 'b'} does not have the bytes that were written: make it again"
    assert caught.value.exit_code == 2
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # jobs of a sweep send it
