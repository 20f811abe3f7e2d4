"""Files that are not what they should be are refused with their line; odd but right ones are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.documents import leaves, read_document
from tests.config import BASE, lay_out, refused


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (BASE + "rank: 4\nrank: 5\n", 5, "duplicate key rank"),
        (BASE + "trainer:\n  epochs: 1\n  epochs: 2\n", 6, "duplicate key epochs"),
        (BASE + "trainer:\n\tepochs: 1\n", 5, "not YAML"),
        (BASE + "rank: [1\n", 5, "not YAML"),
        (BASE + "---\nrank: 3\n", 4, "not YAML"),
        (BASE + "? [a]\n: x\n", 4, "not YAML"),
        ("- a\n- b\n", 1, "not a mapping"),
        ("hello\n", 1, "not a mapping"),
        (BASE + "3: x\n", 4, "no option 3"),
        (BASE + "x: &a\n  epochs: 2\ntrainer:\n  <<: *a\n", 4, "no option x"),
        (BASE + "rank:\n  x: 4\n", 4, "rank="),
        (BASE + "trainer: 3\n", 4, "trainer"),
        (BASE + "trainer: [1, 2]\n", 4, "trainer"),
        (BASE + "trainer:\n", 4, "trainer"),
        (BASE + "rank: ${nope}\n", 4, "nope"),
        (BASE + "trainer: &a\n  b: *a\n", 4, "trainer"),
    ],
)
def test_a_file_with_a_mistake_is_refused_at_its_line(content: str, line: int, message: str) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": content})
    faults = refused("recipe=mine", "--config-dir", "mine")
    assert any(fault.startswith(f"mine/recipes/mine.yaml:{line}: ") and message in fault for fault in faults), faults


@pytest.mark.parametrize("content", [b"name: \xe9\n", BASE + "name: ${oops\n", BASE + "~: x\n", "name: " + "[" * 1500])
def test_a_file_that_cannot_be_read_at_all_is_named(content: str | bytes) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": content})
    (fault,) = refused("recipe=mine", "--config-dir", "mine")
    assert fault.startswith("mine/recipes/mine.yaml")


def test_a_folder_with_the_name_of_a_recipe_is_no_recipe() -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml/inside": ""})
    (fault,) = refused("recipe=mine", "--config-dir", "mine")
    assert "mine" in fault


@pytest.mark.parametrize(
    "content",
    [
        (BASE + "rank: 4\n").replace("\n", "\r\n"),
        "\ufeff" + BASE + "rank: 4\n",
        BASE + "rank: 4",
        BASE + "{rank: 4}"[1:-1],
    ],
    ids=["windows", "byte order mark", "no last line end", "plain"],
)
def test_line_ends_and_marks_of_other_systems_are_read(content: str) -> None:
    lay_out(Path("mine"), {"recipes/mine.yaml": content})
    assert compose(["recipe=mine", "--config-dir", "mine"]).rank == 4


def test_numbers_in_scientific_notation_are_numbers() -> None:
    """YAML 1.1 reads 1e-4 as text."""
    lay_out(Path("mine"), {"recipes/mine.yaml": BASE + "trainer:\n  learning_rate: 1e-4\n"})
    assert compose(["recipe=mine", "--config-dir", "mine"]).trainer.learning_rate == 1e-4


def test_lines_of_nested_keys_and_of_list_items_are_known(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: 1\n\nb:\n  c:\n    d: 2\ne:\n  - x\n  - y\n", encoding="utf-8")
    document, faults = read_document(file, "recipe")
    assert faults == []
    assert document.lines[("b", "c", "d")] == 5
    assert document.lines[("e", "1")] == 8
    assert document.where(("b", "c", "missing")) == "x.yaml:4"


def test_leaves_are_all_keys_parents_first() -> None:
    assert leaves({"a": {"b": 1}, "c": [2]}) == [(("a",), {"b": 1}), (("a", "b"), 1), (("c",), [2])]
