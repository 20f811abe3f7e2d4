from __future__ import annotations

from typing import Any

import pytest

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.labels import LabelReader, LabelWriter, described, find_classes
from lora_ga_cli.data.source import FileRows
from lora_ga_cli.errors import Fault


def column(*values: Any) -> FileRows:
    return FileRows("d.csv", [{"y": value} for value in values], [("d.csv", 0, "")], range(2, len(values) + 2), ["y"])


@pytest.mark.parametrize(("cell", "number"), [("no", 0), (" yes ", 1), (0, 0), ("1", 1), (1.0, 1), ("0 ", 0)])
def test_a_cell_is_a_name_or_a_number(cell: object, number: int) -> None:
    assert LabelReader(["no", "yes"])(cell, "y") == number


@pytest.mark.parametrize(("cell", "number"), [(1, 0), ("3", 2), (2.0, 1)])
def test_where_names_are_numbers_a_cell_is_a_name(cell: object, number: int) -> None:
    assert LabelReader(["1", "2", "3"])(cell, "stars") == number


def test_booleans_are_names() -> None:
    read = LabelReader(["true", "false"])
    assert (read(True, "y"), read(False, "y"), read("true", "y")) == (0, 1, 0)


@pytest.mark.parametrize(
    ("names", "cell", "reason"),
    [
        (["no", "yes"], 2, "column 'y' holds 2, which is no class (known: no, yes)"),
        (["no", "yes"], -1, "column 'y' holds -1, which is no class (known: no, yes)"),
        (["negative", "positive"], "positiv", "column 'y' holds 'positiv', which is no class (did you mean positive?)"),
        (["1", "2", "3"], 0, "column 'y' holds 0, which is no class (known: 1, 2, 3)"),
        (["no", "yes"], 0.5, "column 'y' holds 0.5, which is no class (known: no, yes)"),
        (["no", "yes"], True, "column 'y' holds True, which is no class (known: no, yes)"),
        (["no", "yes"], None, "column 'y' is null, not a class"),
        (["no", "yes"], float("nan"), "column 'y' is null, not a class"),
        (["no", "yes"], [1], "column 'y' holds [1], which is no class (known: no, yes)"),
    ],
)
def test_anything_else_is_a_bad_row(names: list[str], cell: object, reason: str) -> None:
    with pytest.raises(BadRow) as error:
        LabelReader(names)(cell, "y")
    assert str(error.value) == reason


class TestWriter:
    """A class's name in the place of its number."""

    @pytest.fixture
    def write(self) -> LabelWriter:
        return LabelWriter("y", ["no", "yes"])

    @pytest.mark.parametrize("cell", [1, "1", 1.0, "yes", " yes "])
    def test_the_number_becomes_the_name(self, write: LabelWriter, cell: object) -> None:
        row = {"q": "1", "y": cell}
        assert write(row) == {"q": "1", "y": "yes"}
        assert row["y"] == cell

    @pytest.mark.parametrize("row", [{"y": -1}, {"y": 2}, {"y": None}, {"y": "maybe"}, {}])
    def test_what_is_no_class_is_a_bad_row(self, write: LabelWriter, row: dict[str, object]) -> None:
        with pytest.raises(BadRow):
            write(row)

    def test_without_a_label_column_rows_stay_as_they_are(self) -> None:
        assert LabelWriter(None, ["no", "yes"])({"q": "a", "y": 1}) == {"q": "a", "y": 1}


def test_classes_are_counted_and_what_is_no_class_is_left_to_its_row() -> None:
    assert find_classes(column("1", 0, 2.0, None, -1, "x"), "y", shown_as="y") == ["0", "1", "2"]


def test_names_are_found_in_sorted_order_so_that_the_order_of_rows_does_not_matter() -> None:
    assert find_classes(column("pos", " neg", None, "", "pos"), "y", shown_as="label") == ["neg", "pos"]
    assert find_classes(column(True, False), "y", shown_as="label") == ["false", "true"]
    assert described(["neg", "pos"]) == "2 classes: 0 neg, 1 pos"
    assert described(["0", "1"]) == "2 classes: 0, 1"


def test_names_among_which_numbers_stand_are_refused_since_a_number_is_a_place_in_their_order() -> None:
    fault = find_classes(column("pos", "neg", "pos", 1), "y", shown_as="label")
    assert str(fault) == (
        "dataset.label: column 'label' of d.csv holds numbers (1) and names ('neg') "
        "(name every class in dataset.label_names)"
    )


def test_a_column_with_too_many_texts_holds_no_classes() -> None:
    fault = find_classes(column(*(f"text {number}" for number in range(1001))), "y", shown_as="label")
    assert "column 'label' of d.csv holds more than 1,000 different texts" in str(fault)


def test_the_models_number_of_classes_has_to_be_that_of_the_names() -> None:
    assert find_classes(column("b", "a"), "y", shown_as="label", count=2) == ["a", "b"]
    fault = find_classes(column("b", "a"), "y", shown_as="label", count=3)
    assert "model.num_labels: 3, and column 'label' of d.csv has 2 classes: a, b" in str(fault)


def test_a_gap_is_no_guess() -> None:
    fault = find_classes(column(1, 2, 3), "y", shown_as="stars")
    assert isinstance(fault, Fault)
    assert str(fault) == (
        "dataset.label: in column 'stars' of d.csv class 0 does not occur, though 3 does "
        "(name every class in dataset.label_names; classes count from 0)"
    )
