"""Messages between the candidate's process and the grader, which does not trust it: values as lines of JSON.

Only copies of plain values pass. An object whose ``__eq__`` always returns True arrives as the plain value that it
holds, or as a `Foreign` object that equals nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Set
from decimal import Decimal
from fractions import Fraction
from typing import IO, Any

MAX_BYTES = 8 << 20
"""Longest message, in bytes."""
MAX_INTEGER = 1 << 63
"""Integers below it, by absolute value, pass as JSON numbers; the others as hexadecimal text."""


class Foreign:
    """Stands for a value that cannot be sent; it equals only itself."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Items(Foreign):
    """Stands for an iterable that is no list, tuple or set, such as a generator; iterating gives the items it held."""

    def __init__(self, items: list[Any]):
        super().__init__("iterable")
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class BadMessage(Exception):
    """A line that is not a message, is too long, or did not arrive."""


class Gone(BadMessage):
    """The other side has closed the connection."""


def pack(value: Any) -> Any:
    """A value in a form that JSON can hold. A JSON object is a tag: the kind of value, and its parts."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value) if -MAX_INTEGER < value < MAX_INTEGER else {"int": hex(value)}
    if isinstance(value, str):
        return str.__str__(value)  # the text itself, even if a subclass prints another
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (Decimal, Fraction)):
        return {type(value).__name__: str(value)}
    if isinstance(value, range):
        return {"range": [pack(value.start), pack(value.stop), pack(value.step)]}
    if isinstance(value, Iterable):
        kind = "tuple" if isinstance(value, tuple) else "set" if isinstance(value, Set) else "items"
        return {kind: [pack(item) for item in value]}
    return {"foreign": type(value).__name__}


def unpack(value: Any) -> Any:
    """The value that `pack` was given.

    Raises:
        BadMessage: `pack` makes no such value.
    """
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        [(kind, parts)] = value.items()
        return UNPACK[kind](parts)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadMessage("not a plain value") from error


def _unpack_all(parts: list[Any]) -> list[Any]:
    return [unpack(part) for part in parts]


UNPACK: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "dict": lambda pairs: {unpack(key): unpack(item) for key, item in pairs},
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*parts),
    "Decimal": Decimal,
    "Fraction": Fraction,
    "range": lambda parts: range(*_unpack_all(parts)),
    "tuple": lambda parts: tuple(_unpack_all(parts)),
    "set": lambda parts: set(_unpack_all(parts)),
    "items": lambda parts: Items(_unpack_all(parts)),
    "foreign": Foreign,
}


def write(file: IO[bytes], message: Any) -> None:
    """Sends a message.

    Raises:
        BadMessage: too long or too deep.
    """
    try:
        line = json.dumps(pack(message)).encode() + b"\n"
    except RecursionError as error:
        raise BadMessage("a value too deep to pass on") from error
    if len(line) > MAX_BYTES:
        raise BadMessage("a value too long to pass on")
    file.write(line)
    file.flush()


def read(file: IO[bytes]) -> Any:
    """Waits for a message.

    Raises:
        BadMessage: the line is not a message.
        Gone: the other side has closed the connection.
    """
    line = file.readline(MAX_BYTES + 1)
    if not line:
        raise Gone("the connection is closed")
    if not line.endswith(b"\n"):
        raise BadMessage("a message without end")
    try:
        return unpack(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise BadMessage("not a message") from error
