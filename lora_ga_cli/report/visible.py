"""Text that a model or a stranger wrote, made safe for a terminal."""

from __future__ import annotations

import unicodedata

KEPT = frozenset("\n\t\u200c\u200d")
"""Line breaks, tabs, and the joiners that scripts and emoji need."""


def visible(text: str) -> str:
    """The text with every control character shown, so that none moves the cursor or changes the terminal.

    ``ESC`` becomes ``␛``, and so on. Characters that are invisible or turn the direction of writing, and those that
    have no symbol, are written as escapes: ``\\u202e``.
    """
    if text.isprintable():
        return text
    return "".join(character if character in KEPT else _shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character
