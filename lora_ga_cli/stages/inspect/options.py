"""What `loraga inspect` is asked to show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.errors import Fault


@dataclass(frozen=True)
class InspectOptions:
    """The options of an inspection.

    Args:
        share: of ``‖G‖²``, which the advised ranks follow.
        every_layer: whether tables have one line for each layer.
        figures: the folder of the figures; None for ``inspect/`` in the folder of the target.
        base: the base model; None for what needs none.
        layers: a regular expression that a layer's full name has to match.
        modules: endings of names of layers, separated by commas.
    """

    share: float = 0.9
    every_layer: bool = False
    figures: Path | None = None
    base: str | None = None
    layers: str | None = None
    modules: str | None = None

    def faults(self) -> list[Fault]:
        """What is wrong with the options."""
        return list(self._faults())

    def _faults(self) -> Iterator[Fault]:
        if not 0 < self.share < 1:
            yield Fault("command line", f"--share {self.share:g}", "a number between 0 and 1")
        if self.layers is not None:
            try:
                re.compile(self.layers)
            except re.error as error:
                yield Fault("command line", f"--layers {self.layers}: {error}", "a regular expression of Python")
        if self.figures is not None and self.figures.exists() and not self.figures.is_dir():
            yield Fault("command line", f"--figures {self.figures}: a file", "give a folder")

    def selects(self, name: str) -> bool:
        """Whether a layer is to be inspected, by its full name."""
        endings = None if self.modules is None else tuple(item.strip() for item in self.modules.split(","))
        if endings is not None and not any(name == item or name.endswith(f".{item}") for item in endings):
            return False
        return self.layers is None or re.search(self.layers, name) is not None
