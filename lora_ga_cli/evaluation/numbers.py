"""Numbers as models write them in answers, read exactly."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

LONGEST = 64
"""Characters of a number, and its largest exponent: beyond, a text is a runaway and its value would fill memory."""
FRAC = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
MARKUP = re.compile(r"\\(?:boxed|text|mathrm|[!,;()\[\]])|[{}*]")
NUMBER = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
BEFORE = r"[\s\\$€£¥₹]*"
LEADING = re.compile(
    rf"{BEFORE}(?:(?P<sign>[-+−]){BEFORE})?(?P<number>{NUMBER})(?:\s*/\s*(?P<divisor>{NUMBER}))?(?![.,/]?[0-9])"
)
FURTHER = re.compile(rf"(?<![A-Za-z]\^)[-−]?(?P<number>{NUMBER})")
PLAIN = re.compile(r"-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")


def read_number(text: str) -> Fraction | None:
    """The number that a text begins with, exactly, as a fraction (1/3 is no decimal); None if it begins with none.

    Before it may stand a sign (``-``, ``+``, ``−``) and a currency sign, after it a unit or other words, as in
    ``-$1,000.50``, ``5 kg`` and ``20%`` (which is 20). Commas separate thousands and a point the decimals, so that
    ``1.234,5`` and ``1,5`` are none, and ``1.234`` is less than 2. ``1/2``, ``1e3``, ``\\frac{1}{2}`` and
    ``\\boxed{5}`` are read. A text with another number after the first, such as ``3 or 4``, ``2 1/2`` or ``5:30``, does
    not say which it means, and has none; the same number again, and the exponent of a unit (``m^2``), do not count.
    """
    tidy = MARKUP.sub("", FRAC.sub(r" \1/\2", text)).strip()
    found = LEADING.match(tidy)
    value = None if found is None else _value(found)
    if found is None or value is None:
        return None
    again = (_signed(other[0][0], _exact(other["number"])) for other in FURTHER.finditer(tidy, found.end()))
    return value if all(other == value for other in again) else None


def read_plain(text: str) -> Fraction | None:
    """The number that a whole text is, as GSM8K's own answers are written: digits, with thousands and decimals."""
    return read_number(text) if PLAIN.fullmatch(text) else None


def written(value: Fraction) -> str:
    """The shortest decimal notation, or ``1/3`` where there is none."""
    places = next((count for count in range(4 * LONGEST) if 10**count % value.denominator == 0), None)
    if places is None:
        return str(value)
    return format(Decimal(f"{value.numerator * 10**places // value.denominator}E-{places}"), "f")


def _value(found: re.Match[str]) -> Fraction | None:
    value = _signed(found["sign"], _exact(found["number"]))
    if value is None or found["divisor"] is None:
        return value
    divisor = _exact(found["divisor"])
    return value / divisor if divisor else None


def _signed(sign: str | None, value: Fraction | None) -> Fraction | None:
    return -value if value is not None and sign in ("-", "−") else value


def _exact(digits: str) -> Fraction | None:
    mantissa, _, exponent = digits.lower().partition("e")
    if max(len(mantissa), len(exponent)) > LONGEST or abs(int(exponent or 0)) > LONGEST:
        return None
    return Fraction(digits.replace(",", ""))
