"""Sections whose options depend on one of them: ``method`` and ``eval``; and what a validation may leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import InitErrorDetails, PydanticCustomError

from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.registry import METHODS, TASKS, Registry


@dataclass(frozen=True)
class TypedSection:
    """A section whose options depend on one of them, which names a registered class; the class has the options.

    Args:
        key: the option that names the class.
        registry: the classes. Each has ``Options``, a subclass of `Section`, and ``check(config)``, which yields what
            does not go together.
        default: the name that holds where none is given.
    """

    name: str
    key: str
    registry: Registry[Any]
    default: str

    @property
    def decider(self) -> tuple[str, str]:
        """The path of the option that names the class."""
        return self.name, self.key

    def options_of(self, type_name: object) -> type[Section] | None:
        """The class of the options of a type; None if there is no such type."""
        found = self.registry.find(type_name) if isinstance(type_name, str) else None
        return found.Options if found is not None else None

    def validate(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Validates a mapping by the class that its type names."""
        if not isinstance(value, Mapping):
            return handler(value)
        type_name = value.get(self.key, self.default)
        options = self.options_of(type_name)
        if options is None:
            hint = self.registry.hint_for(str(type_name))
            error = PydanticCustomError(
                "unknown_type", "names no {what}; {hint}", {"what": self.registry.what, "hint": hint}
            )
            details = InitErrorDetails(type=error, loc=(self.key,), input=type_name)
            raise ValidationError.from_exception_data(self.name, [details])
        return options.model_validate({**value, self.key: type_name})


METHOD = TypedSection("method", "type", METHODS, "lora_ga")
EVAL = TypedSection("eval", "task", TASKS, "rows")
WITHOUT_TYPES = {"types": False}
"""The context of a validation that imports no class of a method or task."""
WITHOUT_RULES = {"rules": False}
"""The context of a validation that looks at each option alone."""
TYPED_SECTIONS = {section.name: section for section in (METHOD, EVAL)}
