"""Compressed files, and files in UTF-16: the same rows as those of the plain file, or a message."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.data.local import read_files
from lora_ga_cli.errors import DataError

ROWS = [{"q": "é\u2028x", "a": "日本"}, {"q": "𝄞", "a": "3"}] * 2000
"""U+2028 ends a line for Python, and 𝄞 takes two units of UTF-16. The rows are more than a chunk."""
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = ("q,a\n" + "".join(f'"{row["q"]}",{row["a"]}\n' for row in ROWS)).encode()
CONTENTS = {
    ".jsonl": JSONL,
    ".json": json.dumps(ROWS, ensure_ascii=False).encode(),
    ".csv": CSV,
    ".tsv": CSV.replace(b",", b"\t").replace(b'"', b""),
}


def rows_of(path: Path) -> list[dict[str, Any]]:
    source = read_files([str(path)], column_names=None, on_bad_row="error")
    return source.take(range(len(source)), ["q", "a"])


def fault_of(path: Path) -> str:
    with pytest.raises(DataError) as error:
        rows_of(path)
    (fault,) = error.value.faults
    return str(fault).removeprefix(f"{path.parent}/")


@pytest.mark.parametrize("suffix", CONTENTS)
@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")])
def test_a_file_in_utf_16_is_read_and_said_to_be_one(
    tmp_path: Path, suffix: str, mark: bytes, encoding: str, tokenizer: Any
) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_bytes(mark + CONTENTS[suffix].decode().encode(encoding))
    assert rows_of(path) == ROWS
    config = DatasetConfig(train_file=str(path), prompt="{q}", answer="{a}")
    train = load_data(config, task="causal_lm", tokenizer=tokenizer, seed=0).train
    assert train is not None
    assert list(train.notes) == [f"{path} is UTF-16, by its byte order mark, and is read as such"]


def test_a_compressed_file_may_be_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(codecs.BOM_UTF16_LE + JSONL.decode().encode("utf-16-le")))
    assert rows_of(path) == ROWS


def test_half_a_character_is_not_read_as_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(codecs.BOM_UTF16_LE + '{"q": "x"}\n'.encode("utf-16-le") + b"{")
    assert fault_of(path) == (
        "d.jsonl: its byte order mark says UTF-16-LE, but it is not: truncated data (save it as UTF-8)"
    )


@pytest.mark.parametrize("suffix", CONTENTS)
def test_zstandard_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}.zst"
    path.write_bytes(zstandard.compress(CONTENTS[suffix]))
    assert rows_of(path) == ROWS


def test_zstandard_in_several_frames_with_a_large_window(tmp_path: Path) -> None:
    """``zstd --long=31`` makes such windows, and parallel compressors make many frames."""
    path = tmp_path / "d.jsonl.zst"
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compress = zstandard.ZstdCompressor(compression_params=parameters).compress
    cut = len(JSONL) // 3
    path.write_bytes(compress(JSONL[:cut]) + compress(b"") + compress(JSONL[cut:]))
    assert rows_of(path) == ROWS


def cut_off(data: bytes) -> bytes:
    return data[:-5]


def changed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "d.jsonl.zst: damaged Zstandard file: it ends in the middle (fetch it again)"),
        (changed, "d.jsonl.zst: damaged Zstandard file: "),
        (lambda _: JSONL, "d.jsonl.zst: damaged Zstandard file: Unknown frame descriptor (fetch it again)"),
    ],
    ids=["cut off", "changed", "plain"],
)
def test_a_damaged_zstandard_file(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    """The library's own reader of streams takes a file that is cut off as complete."""
    path = tmp_path / "d.jsonl.zst"
    path.write_bytes(damage(zstandard.ZstdCompressor(write_checksum=True).compress(JSONL)))
    assert fault_of(path).startswith(message)
