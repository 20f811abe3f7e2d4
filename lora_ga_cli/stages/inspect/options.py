"""What `loraga inspect` is asked to show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.errors import Fault
from lora_ga_cli.expressions import Expression, expression_faults

LAYERS = "command line: --layers"


@dataclass(frozen=True)
class InspectOptions:
    """The options of an inspection.

    Args:
        share: of ``‖G‖²``, which the advised ranks follow.
        every_layer: whether tables have one line for each layer.
        figures: the folder of the figures; None for ``inspect/`` in the folder of the target.
        with_base: whether to measure against the base's weights too, which are loaded for it.
        base: another place of the base model; None for the one that is known.
        layers: a regular expression that a layer's full name has to match.
        modules: endings of names of layers, separated by commas.
        factors: whether two adapters are compared by the singular vectors of their factors A and B, and not by those of
            ΔW.
    """

    share: float = 0.9
    every_layer: bool = False
    figures: Path | None = None
    with_base: bool = False
    base: str | None = None
    layers: str | None = None
    modules: str | None = None
    factors: bool = False

    def figures_for(self, folder: Path, *others: Path) -> Path:
        """The folder of the figures of a target: inside a run, beside an adapter, and beside the first of several."""
        if self.figures is not None:
            return self.figures
        if not others and (folder / "manifest.json").is_file():
            return folder / "inspect"
        names = "-".join(item.resolve().name for item in (folder, *others))
        return folder.resolve().parent / f"inspect-{names}"

    def faults(self) -> list[Fault]:
        """What is wrong with the options."""
        return list(self._faults())

    def _faults(self) -> Iterator[Fault]:
        if not 0 < self.share < 1:
            yield Fault("command line", f"--share {self.share:g}", "a number between 0 and 1")
        if self.layers is not None:
            yield from expression_faults(LAYERS, self.layers)
        if self.figures is not None and self.figures.exists() and not self.figures.is_dir():
            yield Fault("command line", f"--figures {self.figures}: a file", "give a folder")

    def selects(self, name: str) -> bool:
        """Whether a layer is to be inspected, by its full name."""
        endings = None if self.modules is None else tuple(item.strip() for item in self.modules.split(","))
        if endings is not None and not any(name == item or name.endswith(f".{item}") for item in endings):
            return False
        return self.layers is None or Expression(LAYERS, self.layers).search(name) is not None
