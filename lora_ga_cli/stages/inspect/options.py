"""What `loraga inspect` is asked to show."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.expressions import Expression, expression_faults

PLACE = "command line"
LAYERS = f"{PLACE}: --layers"


@dataclass(frozen=True)
class InspectOptions:
    """The options of an inspection.

    Args:
        share: of ``‖G‖²``, which the advised ranks follow.
        every_layer: whether tables have one line for each layer.
        figures: the folder of the figures; None for the one of `figures_for`.
        with_base: whether to measure against the base's weights too, which are loaded for it.
        base: another place of the base model; None for the one that is known.
        layers: a regular expression that a layer's full name has to match.
        modules: endings of names of layers, separated by commas.
        factors: whether two adapters are compared by the singular vectors of their factors A and B, and not by those of
            ΔW.
        command: the words of the command line behind ``loraga``, to which a message may add options.
    """

    share: float = 0.9
    every_layer: bool = False
    figures: Path | None = None
    with_base: bool = False
    base: str | None = None
    layers: str | None = None
    modules: str | None = None
    factors: bool = False
    command: tuple[str, ...] = ()

    @property
    def endings(self) -> tuple[str, ...]:
        """The entries of ``--modules``."""
        return () if self.modules is None else tuple(item.strip() for item in self.modules.split(","))

    @property
    def selecting(self) -> str:
        """The options that select layers, as they were given; empty without any."""
        given = {"--layers": self.layers, "--modules": self.modules}
        return " ".join(f"{option} {value}" for option, value in given.items() if value is not None)

    def figures_for(self, name: str, run: Path | None = None, other: str = "") -> Path:
        """The folder of the figures: ``inspect/`` or ``inspect-OTHER/`` in a run's folder, else ``inspect-NAME/`` in
        the current one.

        Args:
            name: of the target, or of both.
            run: the folder of the run that is inspected, or of the first of two.
            other: the name of the second one.

        Returns:
            As it is printed: relative where it is inside of the current folder, else absolute.
        """
        folder = Path(f"inspect-{name}") if run is None else run / (f"inspect-{other}" if other else "inspect")
        absolute = (self.figures or folder).expanduser().absolute()
        here = Path.cwd()
        return Path(os.path.relpath(absolute, here)) if absolute.is_relative_to(here) else absolute

    def faults(self) -> list[Fault]:
        """What is wrong with the options."""
        return list(self._faults())

    def _faults(self) -> Iterator[Fault]:
        if not 0 < self.share < 1:
            yield Fault(PLACE, f"--share {self.share:g}", "a number between 0 and 1")
        if self.layers is not None:
            if not self.layers:
                yield Fault(PLACE, "--layers is empty", "leave it out for all layers")
            yield from expression_faults(LAYERS, self.layers)
        if self.modules is not None and not all(self.endings):
            what = f"--modules '{self.modules}' has an empty entry"
            yield Fault(PLACE, what, "endings of names with commas between them: q_proj,v_proj")
        if self.base is not None and not self.base:
            yield Fault(PLACE, "--base is empty", "the folder or name of the base model")
        if self.figures is not None and self.figures.exists() and not self.figures.is_dir():
            yield Fault(PLACE, f"--figures {self.figures}: a file", "give a folder")

    def selected(self, names: Iterable[str]) -> list[str]:
        """The layers that are to be inspected.

        Args:
            names: full names of the layers that there are.
        """
        endings = self.endings
        ending = [name for name in names if not endings or any(_ends(name, item) for item in endings)]
        return ending if self.layers is None else Expression(LAYERS, self.layers).found_in(ending)

    def check_selection(self, names: Collection[str], whose: str) -> None:
        """Refuses options that select no layer, or of which an entry means none.

        Args:
            names: full names of the layers that there are.
            whose: what has these layers, such as ``the gradient``.

        Raises:
            InvalidInput: all that is wrong.
        """
        if faults := list(self._selection_faults(names, whose)):
            raise InvalidInput(faults)

    def _selection_faults(self, names: Collection[str], whose: str) -> Iterator[Fault]:
        wrong = False
        for entry in self.endings:
            if not any(_ends(name, entry) for name in names):
                wrong = True
                yield Fault(PLACE, f"--modules {entry}: no layer of {whose} ends with it", _meant(entry, names))
        if self.layers is not None and not Expression(LAYERS, self.layers).found_in(names):
            wrong = True
            what = f"--layers {self.layers}: matches no full name of a layer of {whose}"
            yield Fault(PLACE, what, _meant(self.layers, names))
        if not wrong and not self.selected(names):
            yield Fault(PLACE, f"{self.selecting}: no layer of {whose} matches both", "leave one of them out")


def _ends(name: str, entry: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _meant(text: str, names: Collection[str]) -> str:
    """The last part of a layer's name, or the full name, that is nearest to a text, with a full name that has it."""
    near = difflib.get_close_matches(text, [*names, *dict.fromkeys(name.rpartition(".")[2] for name in names)], n=1)
    full = next((name for name in names if near and _ends(name, near[0])), next(iter(names)))
    if not near:
        return f"a full name is {full}"
    return f"did you mean {near[0]}?" if near[0] == full else f"did you mean {near[0]}, as in {full}?"
