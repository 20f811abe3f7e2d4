"""What is wrong with a value, in words that do not assume that the reader knows Python or pydantic."""

from __future__ import annotations

from typing import Any

WANTED = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number with fewer digits",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping, {name: value}",
    "model_type": "a mapping, {name: value}",
    "model_attributes_type": "a mapping, {name: value}",
}
"""What a value should be, by the type of pydantic's error."""


def what_is_wrong(error: Any) -> str:
    """One of the errors of pydantic's ``errors()``, in words that follow the name of the option or its value."""
    kind = str(error["type"])
    if kind in WANTED:
        return f"should be {WANTED[kind]}"
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "is not known"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be ", "should be ")
    return message[:1].lower() + message[1:]
