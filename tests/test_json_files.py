"""JSON on disk is plain JSON, whose damage is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from lora_ga_cli import json_files
from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.json_files import json_problem


def test_json_keeps_values_order_and_letters(tmp_path: Path) -> None:
    value = {"z": 0.1 + 0.2, "a": ["größe", None, True], "n": {"x": 1}}
    json_files.write_json(tmp_path / "x.json", value)
    assert json_files.read_json(tmp_path / "x.json") == value
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "größe" in text
    assert text.index('"z"') < text.index('"a"')


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    json_files.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        json_files.write_json(tmp_path / "x.json", {"a": object()})
    assert json_files.read_json(tmp_path / "x.json") == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_json_checksum_does_not_depend_on_the_order_of_keys_but_of_items() -> None:
    assert json_files.sha256_json({"a": 1, "b": [1, 2]}) == json_files.sha256_json({"b": [1, 2], "a": 1})
    assert json_files.sha256_json({"a": [1, 2]}) != json_files.sha256_json({"a": [2, 1]})
    assert json_files.sha256_json({"a": 1}) != json_files.sha256_json({"a": "1"})


def test_json_on_disk_is_plain_json(tmp_path: Path) -> None:
    json_files.write_json(tmp_path / "x.json", {"a": 1})
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"a": 1}


@pytest.mark.parametrize("value", [{"a": [1, 2.5e-05], "ü": {"b": None, "sha256": "f" * 64}}, {}])
def test_every_flipped_bit_and_every_cut_of_json_with_a_digest_is_noticed(tmp_path: Path, value: object) -> None:
    file = tmp_path / "x.json"
    json_files.write_json(file, value, digest=True)
    assert json_files.read_json(file) == value
    written = file.read_bytes()
    for bit in range(8 * len(written)):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(DamagedFile, match=r"x\.json is damaged"):
            json_files.read_json(file)
    for length in range(len(written)):
        file.write_bytes(written[:length])
        with pytest.raises(DamagedFile, match=r"x\.json is damaged"):
            json_files.read_json(file)


def test_json_with_a_digest_is_json_for_other_programs(tmp_path: Path) -> None:
    json_files.write_json(tmp_path / "x.json", {"a": 1}, digest=True)
    first, rest = (tmp_path / "x.json").read_bytes().split(b"\n", maxsplit=2)[1:]
    stored = json.loads((tmp_path / "x.json").read_bytes())
    assert stored == {"content_sha256": hashlib.sha256(rest).hexdigest(), "a": 1}
    assert b"content_sha256" in first


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": 1 "b": 2}', "a comma is missing at line 1, column 9"),
        (b'{"a" 1}', "a colon is missing at line 1, column 6"),
        (b"{'a': 1}", "a name in double quotes is missing at line 1, column 2"),
        (b'{"a":\n}', "a value is missing at line 2, column 1"),
        (b'{"a": "b}', "a text has no closing quote; it begins at line 1, column 7"),
        (b'{"a": "b\nc"}', "control character, which JSON writes as \\n or \\u…, at line 1, column 9"),
        (b'{"a": "\\d"}', "a backslash begins no escape of JSON at line 1, column 8"),
        (b"{} {}", "the text goes on after the end at line 1, column 4"),
        (b'"\xff"', "byte 2 is not UTF-8"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"1" * 10_000, "a number has too many digits"),
    ],
)
def test_why_a_text_is_no_json_is_said_in_plain_words(text: bytes, problem: str) -> None:
    with pytest.raises((ValueError, RecursionError)) as error:
        json.loads(text.decode())
    assert json_problem(error.value).endswith(problem)
