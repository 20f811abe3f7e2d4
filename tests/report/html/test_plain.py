"""Settings of runs side by side."""

from __future__ import annotations

from lora_ga_cli.report.html.plain import MISSING, compare, flattened


def test_nested_settings_have_dotted_names_and_values_as_on_the_command_line() -> None:
    settings = {"a": {"b": None, "c": True, "d": 1e-4, "e": [1, "x"], "f": {}}, "g": "text", "h": ""}
    assert flattened(settings) == {
        "a.b": "null",
        "a.c": "true",
        "a.d": "0.0001",
        "a.e": '[1, "x"]',
        "a.f": "{}",
        "g": "text",
        "h": '""',
    }


def test_few_runs_are_columns() -> None:
    found = compare(["one", "two"], [{"rank": 4, "seed": 1}, {"rank": 8, "seed": 1, "new": 2}])
    assert found.same == {"seed": "1"}
    assert found.headings == ["", "one", "two"]
    assert found.lines == [["rank", "4", "8"], ["new", MISSING, "2"]]


def test_many_runs_are_rows() -> None:
    names = list("abcde")
    found = compare(names, [{"rank": number, "alpha": 16} for number in range(5)])
    assert found.headings == ["run", "rank"]
    assert found.lines == [[name, str(number)] for number, name in enumerate(names)]
