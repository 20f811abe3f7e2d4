"""What a model writes cannot act on the terminal."""

from __future__ import annotations

import unicodedata

import pytest

from lora_ga_cli.report.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("a\rb\x08\x7f\x00", "a␍b␈␡␀"),
        ("\x9b31m\u202egnp.exe\u2028\u200b", "\\x9b31m\\u202egnp.exe\\u2028\\u200b"),
        ("tab\tline\n[bold]né 漢 👩\u200d👧", "tab\tline\n[bold]né 漢 👩\u200d👧"),
    ],
)
def test_control_characters_are_shown_and_others_stay(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_character_that_controls_a_terminal_is_left() -> None:
    every = "".join(map(chr, range(0x3000)))
    left = {character for character in visible(every) if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")}
    assert left == {"\n", "\t", "\u200c", "\u200d"}
