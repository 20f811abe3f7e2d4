"""Reads the numbers that models write in answers, exactly."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

MAX_DIGITS = 64
"""The most characters of a number, and its largest exponent. A longer one is no answer, and could fill the memory."""
FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
MARKUP = re.compile(r"\\(?:boxed|text|mathrm|[!,;()\[\]])|[{}*]")
NUMBER = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
BEFORE = r"[\s\\$€£¥₹]*"
LEADING = re.compile(
    rf"{BEFORE}(?:(?P<sign>[-+−]){BEFORE})?(?P<number>{NUMBER})(?:\s*/\s*(?P<divisor>{NUMBER}))?(?![.,/]?[0-9])"
)
NEXT_NUMBER = re.compile(rf"(?<![A-Za-z]\^)[-−]?(?P<number>{NUMBER})")
PLAIN = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def read_number(text: str) -> Fraction | None:
    """The number at the beginning of a text, as an exact fraction; None if there is none.

    A sign (``-``, ``+``, ``−``) and a currency sign may stand before it, and a unit or other words after it:
    ``-$1,000.50``, ``5 kg``, ``20%`` (which is 20). Commas separate thousands and a point separates decimals, so
    ``1.234,5`` and ``1,5`` are not numbers, and ``1.234`` is less than 2. ``1/2``, ``1e3``, ``\\frac{1}{2}`` and
    ``\\boxed{5}`` are read too. A text with a different number after the first, such as ``3 or 4``, ``2 1/2`` or
    ``5:30``, is ambiguous and gives None. The same number again, and the exponent of a unit (``m^2``), are ignored.
    """
    tidy = MARKUP.sub("", FRAC.sub(r" \1/\2", text)).strip()
    match = LEADING.match(tidy)
    value = None if match is None else _value(match)
    if match is None or value is None:
        return None
    others = (_signed(other[0][0], _exact(other["number"])) for other in NEXT_NUMBER.finditer(tidy, match.end()))
    return value if all(other == value for other in others) else None


def read_plain(text: str) -> Fraction | None:
    """The number if the complete text is one, written like GSM8K's answers: digits, with thousands and decimals."""
    return read_number(text) if PLAIN.fullmatch(text) else None


def as_decimal(value: Fraction) -> str:
    """The shortest decimal notation, or a fraction such as ``1/3`` if there is none."""
    places = next((count for count in range(4 * MAX_DIGITS) if 10**count % value.denominator == 0), None)
    if places is None:
        return str(value)
    return format(Decimal(f"{value.numerator * 10**places // value.denominator}E-{places}"), "f")


def _value(match: re.Match[str]) -> Fraction | None:
    value = _signed(match["sign"], _exact(match["number"]))
    if value is None or match["divisor"] is None:
        return value
    divisor = _exact(match["divisor"])
    return value / divisor if divisor else None


def _signed(sign: str | None, value: Fraction | None) -> Fraction | None:
    return -value if value is not None and sign in ("-", "−") else value


def _exact(digits: str) -> Fraction | None:
    mantissa, _, exponent = digits.lower().partition("e")
    if max(len(mantissa), len(exponent)) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    return Fraction(digits.replace(",", ""))
