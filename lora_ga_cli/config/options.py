"""Looking options up in the schema: do they exist, and does a value fit.

The options of `TYPED_SECTIONS` depend on a type. Looking them up imports the classes of the types, which takes seconds;
`common_options` and `needs_types` do without.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache, cached_property, lru_cache
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lora_ga_cli.config.aliases import MOVED_SECTIONS, RENAMED, hint_for
from lora_ga_cli.config.schema import TYPED_SECTIONS, Config, Section, TypedSection
from lora_ga_cli.config.wording import what_is_wrong
from lora_ga_cli.errors import suggest

LONGEST_SHOWN = 100
"""Characters of a value in a message."""

KeyPath = tuple[str, ...]


class Options(dict[KeyPath, FieldInfo]):
    """Options by path. A group, such as ``trainer``, is not one of them."""

    @cached_property
    def groups(self) -> frozenset[KeyPath]:
        """The names that stand for several options; the empty one stands for all."""
        return frozenset(path[:length] for path in self for length in range(len(path)))


@cache
def common_options() -> Options:
    """The options that every configuration has."""
    return Options(_walk(Config, ()))


def options_of_type(section: TypedSection, type_name: object) -> Options | None:
    """The options of a section for one of its types, by path; None if there is no such type."""
    options = section.options_of(type_name)
    return options_of_class(options, section.name) if options is not None else None


@cache
def options_of_class(options: type[Section], name: str) -> Options:
    """The options of a class, by paths that begin with the name of its section."""
    return Options(_walk(options, (name,)))


def all_options() -> Options:
    """Every option of every type by its path; the first type's field where several types have an option."""
    classes = []
    for section in TYPED_SECTIONS.values():
        classes += [(section.name, section.registry[name].Options) for name in section.registry.names()]
    return _merged(tuple(classes))


@lru_cache(maxsize=8)
def _merged(classes: tuple[tuple[str, type[Section]], ...]) -> Options:
    found = Options(common_options())
    for name, options in classes:
        for path, field in options_of_class(options, name).items():
            found.setdefault(path, field)
    return found


def options_with(types: Mapping[str, object]) -> Options:
    """The options of a configuration whose typed sections have these types."""
    found = Options(common_options())
    for name, type_name in types.items():
        found.update(options_of_type(TYPED_SECTIONS[name], type_name) or {})
    return found


def types_with(path: KeyPath) -> list[str]:
    """The types of a section that have an option, or a group of options, at ``path``."""
    section = TYPED_SECTIONS[path[0]]
    return [
        type_name
        for type_name in section.registry.names()
        if any(option[: len(path)] == path for option in options_of_type(section, type_name) or {})
    ]


def needs_types(path: KeyPath) -> bool:
    """Whether only the types of a section can say if there is such an option."""
    return len(path) > 1 and path[0] in TYPED_SECTIONS and not _is_common(path)


def _is_common(path: KeyPath) -> bool:
    return path in common_options() or path in common_options().groups


def default_values() -> dict[str, Any]:
    """Every option that needs no type with its default as nested plain data; ``???`` (missing, to Hydra) where one is
    required."""
    return _nested_defaults({path: field for path, field in common_options().items() if path[0] not in TYPED_SECTIONS})


def defaults_of_type(section: TypedSection, type_name: object) -> dict[str, Any]:
    """The options of a type with their defaults, as what stands inside the section; empty if there is no such type."""
    options = options_of_type(section, type_name)
    return _nested_defaults(options)[section.name] if options else {}


def _nested_defaults(options: Mapping[KeyPath, FieldInfo]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path, field in options.items():
        around = values
        for name in path[:-1]:
            around = around.setdefault(name, {})
        around[path[-1]] = "???" if field.is_required() else default_of(field)
    return values


def default_of(field: FieldInfo) -> Any:
    """The default of an option; None where it depends on other options."""
    return None if field.default_factory_takes_validated_data else field.get_default(call_default_factory=True)


def literals_of(field: FieldInfo) -> list[str]:
    """The values an option can take, where they can be listed."""
    return ["true", "false"] if field.annotation is bool else _literals(field.annotation)


def unknown(path: KeyPath) -> str | None:
    """What is wrong with a name, with the nearest right one; None if it is an option, a group, or inside a mapping."""
    if path in _for(path) or is_group(path) or mapping_around(path):
        return None
    hint = hint_for(".".join(path)) or _nearest_option(path)
    return f"no option {'.'.join(path)}" + (f" ({hint})" if hint else "")


def renamed(path: KeyPath) -> str | None:
    """The message for an option of a typed section that had this name in an earlier version, or has another section
    now; None for all other names. It needs no types, so that such names are reported with all other faults."""
    name = ".".join(path)
    if name in RENAMED or name.startswith(tuple(MOVED_SECTIONS)):
        return f"no option {name} ({hint_for(name)})"
    return None


def is_group(path: KeyPath, options: Options | None = None) -> bool:
    """Whether a name stands for several options."""
    return path in (_for(path) if options is None else options).groups


def mapping_around(path: KeyPath, options: Options | None = None) -> KeyPath | None:
    """The option that takes a mapping, and is named by ``path`` or has it inside."""
    options = _for(path) if options is None else options
    cuts = (path[:cut] for cut in range(1, len(path) + 1))
    return next((cut for cut in cuts if cut in options and get_origin(options[cut].annotation) is dict), None)


def _for(path: KeyPath) -> Options:
    """The options among which a name is looked up: those of every type only where it needs them."""
    return all_options() if needs_types(path) else common_options()


def misfit(path: KeyPath, value: Any) -> str | None:
    """Why a value does not fit an option; None if it does, or cannot be known before composition.

    A value of an option that several types have fits if it fits one of them.
    """
    if is_group(path):
        return None if isinstance(value, dict) else f"{'.'.join(path)}={as_typed(value)}: it is a group of options"
    if isinstance(value, str) and "${" in value:
        return None
    if not needs_types(path):
        return unfitting(path, value, common_options())
    section = TYPED_SECTIONS[path[0]]
    problem = None
    for type_name in types_with(path):
        problem = unfitting(path, value, options_of_type(section, type_name) or Options())
        if problem is None:
            return None
    return problem


def unfitting(path: KeyPath, value: Any, options: Options) -> str | None:
    """Why a value does not fit an option, in a line; None if it fits, or is of no option among these."""
    field = options.get(path)
    if field is None:
        return None
    kind = kind_of(field.annotation)
    if isinstance(value, bool) and bool not in (field.annotation, *get_args(field.annotation)) and "text" not in kind:
        return f"{'.'.join(path)}={as_typed(value)} should be {kind}"  # to Python, true is 1
    try:
        _adapter(id(field), field).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = tuple(map(str, first["loc"])) if _section_in(field.annotation) else ()
        return explain((*path, *place), first["input"] if place else value, first, options)
    return None


_ADAPTERS: dict[int, TypeAdapter[Any]] = {}


def _adapter(key: int, field: FieldInfo) -> TypeAdapter[Any]:
    if key not in _ADAPTERS:
        annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        _ADAPTERS[key] = TypeAdapter(annotation)
    return _ADAPTERS[key]


def explain(path: KeyPath, value: Any, error: Any, options: Options) -> str:
    """One line for a pydantic error."""
    option = next((path[:cut] for cut in range(len(path), 0, -1) if path[:cut] in options), path)
    inside = _section_in(options[option].annotation) if option in options else None
    name, shown_value = ".".join(option), shortened(as_typed(value))
    if inside is not None and len(path) > len(option):
        return _explain_inside(name, path[len(option) :], shown_value, error, inside)
    if error["type"] == "extra_forbidden":
        return unknown(path) or f"no option {name}"
    if error["type"] == "list_type":
        return f"{name}={shown_value} should be a list: {name}=[{shown_value}]"
    if error["type"] == "string_type" and isinstance(value, bool | int | float):
        kind = "true or false" if isinstance(value, bool) else "a number"
        return f"{name}={shown_value} is read as {kind}; as a text it is written '{name}=\"{shown_value}\"'"
    annotation = options[option].annotation if option in options else None
    choices = _literals(annotation)
    if choices and _takes_numbers(annotation):
        return f"{name}={shown_value} should be {kind_of(annotation)}"
    if choices and isinstance(value, str | bool | int):
        hint = suggest(str(value), choices)
        return f"{name}={shown_value} is not one of {', '.join(choices)}" + (
            f" ({hint})" if hint.startswith("did") else ""
        )
    return f"{name}={shown_value} {what_is_wrong(error)}"


def _explain_inside(name: str, place: KeyPath, shown_value: str, error: Any, section: type[Section]) -> str:
    """One line for an error inside an option whose value is a list of groups.

    Args:
        place: the item's number from 0, and what is wrong in it if it is not the item itself.
    """
    item, field = f"{name}[{place[0]}]", ".".join(place[1:2])
    if error["type"] == "extra_forbidden":
        near = suggest(field, section.model_fields)
        known = f"known: {', '.join(section.model_fields)}"
        return f"{item} has no option {field} ({near if near.startswith('did') else known})"
    return f"{item}{f'.{field}' if field else ''}={shown_value} {what_is_wrong(error)}"


def _section_in(annotation: Any) -> type[Section] | None:
    """The group of options that the items of an option's value are, if they are one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(part) for part in get_args(annotation) if part is not type(None))
    return next((section for section in found if section is not None), None)


def options_in(text: str, options: Options) -> list[KeyPath]:
    """The options that a message names; if it begins with a key inside a mapping, such as an argument in
    ``trainer.extra``, only that key."""
    words = [tuple(word.split(".")) for word in re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)*", text)]
    if words and words[0] not in options and text.startswith(".".join(words[0])) and mapping_around(words[0]):
        return words[:1]
    return [path for path in words if path in options]


def _nearest_option(path: KeyPath) -> str:
    """The hint for a name that is no option. Within a section only the last part is compared: sharing the section's
    name makes no two options alike."""
    section = ".".join(path[:-1])
    options = _for(path)
    siblings = [option[-1] for option in options if option[:-1] == path[:-1]]
    if section and siblings:
        close = difflib.get_close_matches(path[-1], siblings, n=1)
        return f"did you mean {section}.{close[0]}?" if close else f"loraga recipes options {section} lists them"
    return suggest(".".join(path), {".".join(option) for option in options} | {option[0] for option in options})


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


def _takes_numbers(annotation: Any) -> bool:
    """Whether an option takes numbers beside its words."""
    parts = get_args(annotation) if get_origin(annotation) in (typing.Union, types.UnionType) else ()
    return any(kind_of(part) in ("integer", "number") for part in parts)


def kind_of(annotation: Any) -> str:
    """What an option takes, as a person reads it."""
    literals = _literals(annotation)
    if literals and _takes_numbers(annotation):
        return " | ".join("null" if part is type(None) else kind_of(part) for part in get_args(annotation))
    if literals:
        inside = " | ".join(literals)
        return f"list of {inside}" if get_origin(annotation) is list else inside
    origin = get_origin(annotation)
    if origin is Annotated:
        return kind_of(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join("null" if part is type(None) else kind_of(part) for part in get_args(annotation))
    if origin is list:
        return f"list of {kind_of(get_args(annotation)[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "mapping"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true | false"}.get(
        annotation.__name__, str(annotation)
    )


def shortened(text: str) -> str:
    """A value as it is shown in a message."""
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def as_typed(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(as_typed(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}: {as_typed(item)}" for name, item in value.items()) + "}"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
