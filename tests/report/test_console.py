"""Output for people: plain text in a pipe, warnings on standard error."""

from __future__ import annotations

import pytest

from lora_ga_cli.report import console


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (3 * 1024**3, "3.00 GiB")],
)
def test_bytes_are_in_binary_units(count: float, text: str) -> None:
    assert console.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (36061, "10:01:01")],
)
def test_times_are_minutes_and_seconds_or_with_hours(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_large_numbers_have_separators() -> None:
    assert console.number(6738415616) == "6,738,415,616"


def test_results_go_to_standard_output_and_warnings_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("plain [bold]text[/]")
    console.step("train", "[3] rows")
    console.title("1: rank=[2]")
    console.warn("careful [x]")
    printed = capsys.readouterr()
    assert printed.out == "plain [bold]text[/]\n    train  [3] rows\n\n━━ 1: rank=[2] ━━\n"
    assert printed.err == "  warning  careful [x]\n"


def test_long_lines_are_not_broken_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("word " * 200)
    assert len(capsys.readouterr().out.splitlines()) == 1
