from __future__ import annotations

import datetime
import decimal

import pytest

from lora_ga_cli.data.faults import BadRow
from lora_ga_cli.data.template import Template, TemplateError, with_sections


def test_columns_are_inserted_and_double_braces_are_braces() -> None:
    template = Template("Q: {question}\nA ({n} of {n}): {{x}}")
    assert template.columns == ["question", "n"]
    assert template.fill({"question": "{n}?", "n": 3}) == "Q: {n}?\nA (3 of 3): {x}"


def test_a_columns_name_may_hold_spaces_and_signs() -> None:
    assert Template("{#1 String}").fill({"#1 String": "a"}) == "a"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{row.__class__}", "{row.__class__} is more than a column's name"),
        ("{row[0]}", "{row[0]} is more than a column's name"),
        ("{row!r}", "{row!r} is more than a column's name"),
        ("{row:>10}", "{row:>10} is more than a column's name"),
        ("{row:{width}}", "{row:{width}} is more than a column's name"),
        ("a {} b", "{} names no column"),
        ("a { b", "in 'a { b'; a literal brace is written {{ or }}"),
        ("a } b", "in 'a } b'; a literal brace is written {{ or }}"),
    ],
)
def test_anything_but_a_plain_column_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(TemplateError) as error:
        Template(text)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        (3, "3"),
        (0.5, "0.5"),
        (True, "True"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2024, 7, 6), "2024-07-06"),
    ],
)
def test_numbers_and_dates_are_written_out(value: object, text: str) -> None:
    assert Template("{x}").fill({"x": value}) == text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "column 'x' is missing in this row"),
        ({"x": None}, "column 'x' is null"),
        ({"x": float("nan")}, "column 'x' is null"),
        ({"x": ["a"]}, "column 'x' holds a list, not a text or a number"),
        ({"x": {"a": 1}}, "column 'x' holds a dict, not a text or a number"),
        ({"x": "\ud83d"}, "column 'x' holds half of a surrogate pair, which no text has"),
    ],
)
def test_a_row_without_a_text_there_is_bad(row: dict[str, object], reason: str) -> None:
    with pytest.raises(BadRow) as error:
        Template("{x}").fill(row)
    assert str(error.value) == reason


class TestSections:
    """Parts that stand only in the text of rows with a value in a column."""

    @pytest.mark.parametrize("row", [{}, {"b": None}, {"b": ""}, {"b": " \n"}, {"b": float("nan")}])
    def test_absent_null_and_empty_are_alike(self, row: dict[str, object]) -> None:
        template = Template("{a}{?b}, with {b}{/b}.")
        assert template.columns == ["a", "b"]
        assert template.fill({"a": "x", **row}) == "x."
        assert template.fill({"a": "x", "b": 0}) == "x, with 0."

    def test_sections_nest_and_what_is_left_out_needs_no_value(self) -> None:
        template = Template("{?a}<{a}{?b}|{b}{/b}>{/a}")
        assert [template.fill(row) for row in ({"a": 1, "b": 2}, {"a": 1}, {"b": 2})] == ["<1|2>", "<1>", ""]

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("{?a}x", "the section of 'a' is not ended: {/a} is missing"),
            ("x{/a}", "{/a} ends no section: no section is open"),
            ("{?a}{?b}x{/a}{/b}", "{/a} ends no section: the section of 'b' is open"),
            ("{?}x{/}", "{?} names no column"),
            ("{?a.b}x{/a.b}", "{?a.b} is more than a column's name"),
        ],
    )
    def test_a_section_that_is_not_closed_is_refused(self, text: str, named: str) -> None:
        with pytest.raises(TemplateError) as error:
            Template(text)
        assert named in str(error.value)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("A: {a}\n\nB:\n{b}\n\nC:", "A: {a}\n\n{?b}B:\n{b}\n\n{/b}C:"),
            ("{b}", "{?b}{b}{/b}"),
            ("{a} {b}\nC:", "{a} {?b}{b}{/b}\nC:"),
            ("{a} {{b}} {b}", "{a} {{b}} {?b}{b}{/b}"),
            ("{?b}B{/b} {b}", "{?b}B{/b} {b}"),
            ("{a}", "{a}"),
        ],
    )
    def test_a_paragraph_of_an_optional_column_becomes_one(self, text: str, expected: str) -> None:
        assert with_sections(text, ["b"]) == expected
