"""Extracting the answer from a text, and comparing two answers."""

from __future__ import annotations

import pytest

from lora_ga_cli.errors import DataError
from lora_ga_cli.evaluation.metrics import expected_answers, extract, normalize

GSM8K = r"####\s*(.+)"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 and 2 are 4.\n#### 4", "4"),
        ("####4", "4"),
        ("#### 1,234", "1234"),
        ("#### $70,000.", "70000"),
        ("####   18  \nand more", "18"),
        ("#### 1\nno, wait\n#### 2", "2"),
        ("the answer is 4", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_last_match_is_the_answer(text: str, answer: str | None) -> None:
    assert extract(text, GSM8K) == answer


def test_a_pattern_without_a_group_is_the_answer_itself() -> None:
    assert extract("between 3 and 14", r"\d+") == "14"


def test_a_group_that_matched_nothing_is_no_answer() -> None:
    assert extract("yes", r"yes|no (\w+)") is None


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        (" 4 ", "4"),
        ("4.", "4"),
        ("$4", "4"),
        ("$ 4", "4"),
        ("1,234,567", "1234567"),
        ("1,23", "1,23"),
        ("(1,234)", "(1234)"),
        ("a,b", "a,b"),
        ("two  words\nhere", "two words here"),
        ("3.5", "3.5"),
        ("-1,000.50", "-1000.50"),
        ("", ""),
    ],
)
def test_spaces_full_stops_currency_and_thousands_are_removed(answer: str, same: str) -> None:
    assert normalize(answer) == same


@pytest.mark.parametrize("answer", ["4.", "$1,234", " $ 70,000. ", "a  b", "$ 5."])
def test_normalizing_twice_changes_nothing_more(answer: str) -> None:
    assert normalize(normalize(answer)) == normalize(answer)


def test_a_reference_without_the_pattern_is_the_answer() -> None:
    assert expected_answers(["reasoning #### 1,000", " 1,000. "], GSM8K) == ["1000", "1000"]


def test_a_pattern_in_no_reference_is_refused() -> None:
    with pytest.raises(DataError, match="is in no reference, such as '1,000'"):
        expected_answers(["1,000"], GSM8K)
