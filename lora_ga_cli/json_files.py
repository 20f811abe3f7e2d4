"""JSON files: written atomically, with a digest of their content where damage has to be noticed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.files import (
    atomic_file,
)

DIGEST = "content_sha256"
"""The first key of a JSON file that `write_json` wrote with a digest: the SHA-256 of all bytes after its line."""
_DIGEST_KEY = b'{\n  "' + DIGEST.encode() + b'": "'
_HEXADECIMAL = re.compile(rb"[0-9a-f]{64}")
JSON_PROBLEMS = {
    "Expecting ',' delimiter": "a comma is missing",
    "Expecting ':' delimiter": "a colon is missing",
    "Expecting property name": "a name in double quotes is missing",
    "Illegal trailing comma": "a comma stands before the end",
    "Expecting value": "a value is missing",
    "Unterminated string": "a text has no closing quote; it begins",
    "Invalid control character": "a text holds a line break or a control character, which JSON writes as \\n or \\u…,",
    "Invalid \\": "a backslash begins no escape of JSON",
    "Extra data": "the text goes on after the end",
    "Unexpected UTF-8 BOM": "a byte order mark stands",
}
"""What is wrong with a text, by how Python's message begins, in words that a place follows."""


def write_json(path: Path, value: Any, *, digest: bool = False) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Args:
        digest: put a digest of the content before it, which `read_json` checks. The value is an object then.
    """
    data = text_of_json(value, digest=digest).encode("utf-8")
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def text_of_json(value: Any, *, digest: bool = False) -> str:
    """The text that `write_json` writes."""
    text = json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n"
    return _with_digest(text.encode().removeprefix(b"{").removeprefix(b"\n")).decode() if digest else text


def read_json(path: Path, mend: str = "") -> Any:
    """The value in a JSON file. The digest that `write_json` may have written is checked, and is no part of the value.

    Args:
        mend: what makes the file anew, for the message.

    Raises:
        FileNotFoundError
        DamagedFile: it is no JSON, or does not have the bytes that were written.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFile(path, f"is damaged (no complete JSON: {json_problem(error)})", mend) from error
    begin = len(_DIGEST_KEY)
    # 64 digits behind another key are a digest whose key is damaged
    if not data.startswith(_DIGEST_KEY) and not _HEXADECIMAL.fullmatch(data[begin : begin + 64]):
        return value
    rest = data[begin + 64 :].removeprefix(b'"').removeprefix(b",").removeprefix(b"\n")
    if data != _with_digest(rest):
        raise DamagedFile(path, "is damaged (its content is not what its digest says)", mend)
    del value[DIGEST]
    return value


def json_problem(error: ValueError | RecursionError, *, line: bool = True) -> str:
    """Why a text is no JSON.

    Args:
        error: of `json.loads`, or of decoding its text.
        line: name the line too, and not only the column.
    """
    if isinstance(error, json.JSONDecodeError):
        words = next((words for begin, words in JSON_PROBLEMS.items() if error.msg.startswith(begin)), error.msg)
        return f"{words} at " + (f"line {error.lineno}, " if line else "") + f"column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _with_digest(rest: bytes) -> bytes:
    """The bytes of a JSON object, from those after its first line."""
    comma = b"" if rest == b"}\n" else b","
    return _DIGEST_KEY + hashlib.sha256(rest).hexdigest().encode() + b'"' + comma + b"\n" + rest


def sha256_json(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
