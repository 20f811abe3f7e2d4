"""A checkpoint that was cut off while it was written, or whose bytes changed since, is never resumed from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_ga_cli.training.checkpoints import (
    MARK,
    damage_of,
    is_complete,
    last_complete,
    last_sound,
    mark_complete,
    read_mark,
    step_of,
)


def write(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "adapter").mkdir(parents=True)
    (checkpoint / "adapter" / "weights").write_bytes(bytes(100))
    (checkpoint / "optimizer").write_bytes(bytes(50))
    mark_complete(checkpoint)
    return checkpoint


def test_a_marked_checkpoint_is_complete(tmp_path: Path) -> None:
    assert is_complete(write(tmp_path, 1))


def test_marking_again_leaves_it_complete(tmp_path: Path) -> None:
    """A resumed run may write the checkpoint of the same step once more."""
    checkpoint = write(tmp_path, 1)
    mark_complete(checkpoint)
    assert is_complete(checkpoint)


@pytest.mark.parametrize("mark", [None, b"", b"{}", b'{"optimi', b"\xff\xfe", b"[]"])
def test_a_missing_or_broken_mark_is_not_complete(tmp_path: Path, mark: bytes | None) -> None:
    checkpoint = write(tmp_path, 1)
    if mark is None:
        (checkpoint / MARK).unlink()
    else:
        (checkpoint / MARK).write_bytes(mark)
    assert not is_complete(checkpoint)


def test_a_truncated_or_missing_file_is_not_complete(tmp_path: Path) -> None:
    truncated, missing = write(tmp_path, 1), write(tmp_path, 2)
    (truncated / "adapter" / "weights").write_bytes(bytes(99))
    (missing / "optimizer").unlink()
    assert not is_complete(truncated)
    assert not is_complete(missing)


def test_one_more_file_does_no_harm(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1)
    (checkpoint / "notes").touch()
    assert is_complete(checkpoint)


def test_the_newest_has_the_highest_step(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        write(tmp_path, step)
    notes: list[str] = []
    assert last_sound(tmp_path, notes.append) == last_complete(tmp_path) == tmp_path / "checkpoint-100"
    assert notes == []


def test_broken_ones_are_set_aside_and_named_down_to_the_first_complete_one(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "checkpoint-4" / MARK).unlink()
    (tmp_path / "checkpoint-3" / "optimizer").write_bytes(b"")
    (tmp_path / "checkpoint-1" / MARK).unlink()
    notes: list[str] = []
    assert last_sound(tmp_path, notes.append) == tmp_path / "checkpoint-2"
    assert notes == [
        "checkpoint-4 was cut off while it was written; it was renamed to checkpoint-4.cut-off",
        "checkpoint-3 is damaged (optimizer has 0 bytes and was written with 50); it was renamed to "
        "checkpoint-3.damaged",
    ]
    assert {item.name for item in tmp_path.iterdir()} == {
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3.damaged",
        "checkpoint-4.cut-off",
    }


def test_what_was_set_aside_is_not_looked_at_again(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 3)
    (checkpoint / MARK).unlink()
    assert last_sound(tmp_path, lambda _: None) is None
    notes: list[str] = []
    assert last_sound(tmp_path, notes.append) is None
    assert notes == []


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert last_sound(tmp_path / "missing", lambda _: None) is last_complete(tmp_path / "missing") is None


@pytest.mark.parametrize("name", ["adapter/weights", "optimizer", MARK])
def test_one_flipped_bit_is_noticed_and_the_checkpoint_before_it_is_taken(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    notes: list[str] = []
    assert last_sound(tmp_path, notes.append) == tmp_path / "checkpoint-1"
    assert name in notes[0]
    assert (tmp_path / "checkpoint-2.damaged").is_dir()


def test_only_the_content_of_the_newest_checkpoint_is_read(tmp_path: Path) -> None:
    (write(tmp_path, 1) / "optimizer").write_bytes(b"x" * 50)
    write(tmp_path, 2)
    assert last_sound(tmp_path, lambda _: None) == tmp_path / "checkpoint-2"
    assert damage_of(tmp_path / "checkpoint-1") == "optimizer does not have the bytes that were written"


def test_a_mark_of_an_earlier_version_has_sizes_alone(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 1)
    (checkpoint / MARK).write_text(json.dumps({"adapter/weights": 100, "optimizer": 50}))
    assert last_sound(tmp_path, lambda _: None) == checkpoint
    (checkpoint / "optimizer").write_bytes(bytes(49))
    assert last_sound(tmp_path, lambda _: None) is None


def test_a_mark_keeps_what_the_metrics_were(tmp_path: Path) -> None:
    mark_complete(write(tmp_path, 1), {"size": 7})
    mark = read_mark(tmp_path / "checkpoint-1")
    assert mark is not None
    assert mark.metrics == {"size": 7}


@pytest.mark.parametrize(
    ("name", "step"), [("checkpoint-12", 12), ("checkpoint-x", -1), ("checkpoint-3.cut-off", -1), ("other", -1)]
)
def test_the_step_is_in_the_name(name: str, step: int) -> None:
    assert step_of(Path(name)) == step
