"""Classes that a name in the configuration chooses: methods, optimizers, benchmarks, forms of a row,
row formats, estimators.

A class registers itself where it is written, so that a new one is one file:

    @METHODS.register("lora_pro")
    class LoraPro(Lora): ...

loraga finds it in the registry's package, in an installed distribution that states an entry point
(``[project.entry-points."loraga.methods"]``), or in a file that ``--code FILE`` names. Nothing is imported before a
name is looked up, because most of these modules import torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from lora_ga_cli.errors import Fault, InvalidInput, suggest

T = TypeVar("T")
CODE_VARIABLE = "LORAGA_CODE"
"""Environment variable through which processes started by this one learn of the files that ``--code`` named."""


class Registry(Generic[T]):
    """Classes by the name that chooses them.

    Args:
        what: what a person calls one of them, for messages.
        package: the package whose modules register the shipped ones.
        entry_points: the group of entry points through which other distributions add theirs.
    """

    def __init__(self, what: str, package: str, entry_points: str):
        self.what, self.package, self.entry_points = what, package, entry_points
        self._classes: dict[str, T] = {}
        self._complete = False

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a class under a name.

        Raises:
            InvalidInput: another class has the name.
        """

        def add(item: T) -> T:
            known = self._classes.get(name)
            if known is not None and _place(known) != _place(item):
                fault = Fault(_place(item), f"the {self.what} {name!r} is registered already, by {_place(known)}")
                raise InvalidInput([fault])
            self._classes[name] = item
            return item

        return add

    def names(self) -> list[str]:
        """Every registered name, sorted. Imports everything that may register one."""
        self._import_all()
        return sorted(self._classes)

    @property
    def loaded(self) -> bool:
        """Whether the modules that register a class have been imported."""
        return self._complete

    def find(self, name: str) -> T | None:
        """The class of a name; None if there is no such name."""
        self._import_all()
        return self._classes.get(name)

    def __getitem__(self, name: str) -> T:
        """The class of a name.

        Raises:
            InvalidInput: there is no such name; with the nearest one.
        """
        found = self.find(name)
        if found is None:
            raise InvalidInput([Fault("configuration", f"no {self.what} {name!r}", self.hint_for(name))])
        return found

    def hint_for(self, name: str) -> str:
        """What to give for a name that is not registered: the closest one, or how to add one."""
        hint = suggest(name, self.names())
        return hint if hint.startswith("did you mean") else f"{hint}; --code FILE adds yours".removeprefix("; ")

    def _import_all(self) -> None:
        if not self._complete:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
                importlib.import_module(module.name)
            for point in entry_points(group=self.entry_points):
                point.load()
            self._complete = True
        for file in filter(None, os.environ.get(CODE_VARIABLE, "").split(os.pathsep)):
            import_code(Path(file))


def import_code(file: Path) -> None:
    """Runs a Python file of the user's, which may register classes; once in a process.

    Processes that this one starts import it too, when they look up a name.

    Raises:
        InvalidInput: there is no such file, or it fails.
    """
    file = file.expanduser().resolve()
    name = f"loraga_code_{file.stem}"
    if getattr(sys.modules.get(name), "__file__", None) == str(file):
        return
    spec = importlib.util.spec_from_file_location(name, file) if file.suffix == ".py" and file.is_file() else None
    if spec is None or spec.loader is None:
        raise InvalidInput([Fault("command line", f"--code {file}: no such Python file")])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except InvalidInput:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise InvalidInput([Fault(f"--code {file}", f"{type(error).__name__}: {error}")]) from error
    known = os.environ.get(CODE_VARIABLE, "").split(os.pathsep)
    os.environ[CODE_VARIABLE] = os.pathsep.join(dict.fromkeys(filter(None, [*known, str(file)])))


def _place(item: Any) -> str:
    return f"{item.__module__}.{item.__qualname__}"


METHODS: Registry[Any] = Registry("method type", "lora_ga_cli.methods", "loraga.methods")
TASKS: Registry[Any] = Registry("eval task", "lora_ga_cli.evaluation.tasks", "loraga.tasks")
EXAMPLES: Registry[Any] = Registry("form of a row", "lora_ga_cli.data.examples", "loraga.examples")
ROW_FORMATS: Registry[Any] = Registry("row format", "lora_ga_cli.data.row_formats", "loraga.row_formats")
MEASURES: Registry[Any] = Registry("measure", "lora_ga_cli.reproduce.measures", "loraga.measures")
OPTIMIZERS: Registry[Any] = Registry("optimizer", "lora_ga_cli.optimizers", "loraga.optimizers")
ESTIMATORS: Registry[Any] = Registry("gradient estimator", "lora_ga_cli.gradient.estimators", "loraga.estimators")
SECTIONS: Registry[Any] = Registry("part of a report", "lora_ga_cli.report.html.sections", "loraga.report_sections")
