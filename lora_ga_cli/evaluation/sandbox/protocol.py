"""Values as lines of JSON: what two programs that do not trust each other can tell each other.

Only plain values pass, as copies: an object that claims to equal everything arrives as what it is made of, or as
nothing that equals anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Set
from decimal import Decimal
from fractions import Fraction
from typing import IO, Any

LONGEST = 8 << 20
"""Bytes of a message."""
SMALL = 1 << 63


class Foreign:
    """Stands for a value that cannot pass; it equals nothing but itself."""

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}>"


class Items(Foreign):
    """Stands for an iterable that is no list, tuple or set, as a generator: one can iterate over what it held."""

    def __init__(self, items: list[Any]):
        super().__init__("iterable")
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class BadMessage(Exception):
    """A line that is no message, is too long, or did not come."""


class Gone(BadMessage):
    """The other side has closed the line."""


def pack(value: Any) -> Any:
    """A value as JSON can hold it. Objects of JSON are tags, with the kind of value and its parts."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value) if -SMALL < value < SMALL else {"int": hex(value)}
    if isinstance(value, str):
        return str.__str__(value)  # of a subclass the text, whatever it prints as
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
        BadMessage: nothing that it makes.
    """
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        [(kind, parts)] = value.items()
        return UNPACK[kind](parts)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadMessage("no plain value") from error


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
    if len(line) > LONGEST:
        raise BadMessage("a value too long to pass on")
    file.write(line)
    file.flush()


def read(file: IO[bytes]) -> Any:
    """Waits for a message.

    Raises:
        BadMessage: what came is none.
        Gone: nothing came, nor will it.
    """
    line = file.readline(LONGEST + 1)
    if not line:
        raise Gone("nothing came")
    if not line.endswith(b"\n"):
        raise BadMessage("a message without end")
    try:
        return unpack(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise BadMessage("no message") from error
