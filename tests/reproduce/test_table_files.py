"""Files of tables: what is wrong in one is said with its place, in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.reproduce.table_files import read_table


def test_what_is_wrong_in_a_table_is_said_in_plain_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("title: 3\nrows: []\ncolums: {}\n")
    with pytest.raises(InvalidInput) as error:
        read_table(file)
    faults = [str(fault).replace(str(file), "mine.yaml") for fault in error.value.faults]
    assert "mine.yaml: title=3 should be a text" in faults
    assert "mine.yaml: rows=[] should be a mapping, {name: value}" in faults
    assert "mine.yaml: full: is required" in faults
    assert any(fault.startswith("mine.yaml: no key 'colums'") for fault in faults)
