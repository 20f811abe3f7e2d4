"""What is remembered of files is right, or is computed again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_ga_cli import files, json_files, remembered_digests


def test_a_damaged_memo_of_digests_is_dropped_with_a_message(tmp_path: Path) -> None:
    said: list[str] = []
    memo = tmp_path / "memo.json"
    remembered_digests.drop_damaged(memo, said.append)
    json_files.write_json(memo, {"a": "b"}, digest=True)
    remembered_digests.drop_damaged(memo, said.append)
    assert memo.exists()
    memo.write_bytes(memo.read_bytes().replace(b"b", b"c"))
    remembered_digests.drop_damaged(memo, said.append)
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
            remembered_digests.remembered_sha256(other, memo)
        return compute(file)

    monkeypatch.setattr(remembered_digests, "sha256_file", while_another_works)
    remembered_digests.remembered_sha256(mine, memo)
    assert [Path(entry.partition("|")[0]).name for entry in json_files.read_json(memo)] == ["other", "mine"]
