"""Looking options up in the schema: do they exist, and does a value fit."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lora_ga_cli.config.schema import Config, Section
from lora_ga_cli.errors import suggest

KeyPath = tuple[str, ...]


@dataclass(frozen=True)
class Option:
    """One option as `loraga recipes options` shows it."""

    path: str
    kind: str
    default: str
    doc: str


@cache
def all_options() -> dict[KeyPath, FieldInfo]:
    """Every option by its path; groups are not in it."""
    return dict(_walk(Config, ()))


def describe() -> Iterator[Option]:
    """All options with type, default and documentation."""
    for path, field in all_options().items():
        default = "required" if field.is_required() else as_typed(field.get_default(call_default_factory=True))
        yield Option(".".join(path), _kind(field.annotation), default, " ".join((field.description or "").split()))


def default_values() -> dict[str, Any]:
    """Every option with its default as nested plain data; ``???`` (missing, to Hydra) where one is required."""
    values: dict[str, Any] = {}
    for path, field in all_options().items():
        section = values
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = "???" if field.is_required() else field.get_default(call_default_factory=True)
    return values


def values_of(path: KeyPath) -> list[str]:
    """The values an option can take, where they can be listed."""
    field = all_options().get(path)
    if field is None:
        return []
    return ["true", "false"] if field.annotation is bool else _literals(field.annotation)


def unknown(path: KeyPath) -> str | None:
    """What is wrong with a name, with the nearest right one; None if it is an option, a group, or inside a mapping."""
    if path in all_options() or is_group(path) or mapping_around(path):
        return None
    hint = _nearest_option(path)
    return f"no option {'.'.join(path)}" + (f" ({hint})" if hint else "")


def is_group(path: KeyPath) -> bool:
    """Whether a name stands for several options."""
    return any(option[: len(path)] == path != option for option in all_options())


def mapping_around(path: KeyPath) -> KeyPath | None:
    """The option that takes a mapping, and is named by ``path`` or has it inside."""
    options = all_options()
    cuts = (path[:cut] for cut in range(1, len(path) + 1))
    return next((cut for cut in cuts if cut in options and get_origin(options[cut].annotation) is dict), None)


def misfit(path: KeyPath, value: Any) -> str | None:
    """Why a value does not fit an option; None if it does, or cannot be known before composition."""
    if is_group(path):
        return None if isinstance(value, dict) else f"{'.'.join(path)}={as_typed(value)}: it is a group of options"
    field = all_options().get(path)
    if field is None or (isinstance(value, str) and "${" in value):
        return None
    if isinstance(value, bool) and field.annotation is not bool:
        return f"{'.'.join(path)}={as_typed(value)} should be {_kind(field.annotation)}"  # to Python, true is 1
    try:
        _adapter(path).validate_python(value)
    except ValidationError as error:
        return explain(path, value, error.errors()[0])
    return None


@cache
def _adapter(path: KeyPath) -> TypeAdapter[Any]:
    field = all_options()[path]
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(annotation)


def explain(path: KeyPath, value: Any, error: Any) -> str:
    """One line for a pydantic error."""
    options = all_options()
    option = next((path[:cut] for cut in range(len(path), 0, -1) if path[:cut] in options), path)
    name, shown_value = ".".join(option), as_typed(value)
    if error["type"] == "list_type":
        return f"{name}={shown_value} should be a list: {name}=[{shown_value}]"
    choices = _literals(options[option].annotation) if option in options else []
    if choices and isinstance(value, str | bool | int):
        hint = suggest(str(value), choices)
        return f"{name}={shown_value} is not one of {', '.join(choices)}" + (
            f" ({hint})" if hint.startswith("did") else ""
        )
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be ", "should be ")
    return f"{name}={shown_value} {message[0].lower()}{message[1:]}"


def mentioned(text: str) -> list[KeyPath]:
    """The options that a message names."""
    words = (tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)*", text))
    return [path for path in words if path in all_options()]


def _nearest_option(path: KeyPath) -> str:
    """The hint for a name that is no option. Within a section only the last part is compared: sharing the section's
    name makes no two options alike."""
    section = ".".join(path[:-1])
    siblings = [option[-1] for option in all_options() if option[:-1] == path[:-1]]
    if section and siblings:
        close = difflib.get_close_matches(path[-1], siblings, n=1)
        return f"did you mean {section}.{close[0]}?" if close else f"loraga recipes options {section} lists them"
    return suggest(
        ".".join(path), {".".join(option) for option in all_options()} | {option[0] for option in all_options()}
    )


def _walk(section: type[Section], prefix: KeyPath) -> Iterator[tuple[KeyPath, FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is typing.Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _literals(part)] if get_args(annotation) else []


def _kind(annotation: Any) -> str:
    literals = _literals(annotation)
    if literals:
        inside = " | ".join(literals)
        return f"list of {inside}" if get_origin(annotation) is list else inside
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join("null" if part is type(None) else _kind(part) for part in get_args(annotation))
    if origin is list:
        return f"list of {_kind(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true | false"}.get(
        annotation.__name__, str(annotation)
    )


def as_typed(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
