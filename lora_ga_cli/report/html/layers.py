"""The layers of a model as a grid: the blocks beside each other, the kinds of layers below each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

OUTSIDE = "outside of blocks"


@dataclass(frozen=True)
class Place:
    """Where a layer is.

    Args:
        stack: path of the list of blocks; empty outside of blocks.
        block: number in that list; None outside of blocks.
        kind: path inside the block, without numbers, so that the experts of a block are of one kind.
    """

    stack: str
    block: int | None
    kind: str


@dataclass(frozen=True)
class Grid:
    """The layers of one list of blocks.

    Args:
        title: what tells it from the model's other lists; empty if there is one.
        cells: names of layers by kind and block; several where a block has several of the kind, such as experts.
    """

    title: str
    blocks: Sequence[int | None]
    kinds: Sequence[str]
    cells: Mapping[tuple[str, int | None], Sequence[str]]


def place(name: str) -> Place:
    """Where a layer is, by its full name: ``model.layers.3.mlp.up_proj`` is in block 3 of ``model.layers``."""
    parts = name.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if number is None or number == len(parts) - 1:
        return Place("", None, name)
    kind = ".".join(part for part in parts[number + 1 :] if not part.isdigit())
    return Place(".".join(parts[:number]), int(parts[number]), kind)


def grids(names: Iterable[str]) -> list[Grid]:
    """The layers in one grid for each list of blocks, in their order."""
    found: dict[str, dict[tuple[str, int | None], list[str]]] = {}
    for name in names:
        where = place(name)
        found.setdefault(where.stack, {}).setdefault((where.kind, where.block), []).append(name)
    result = []
    for stack, cells in found.items():
        labels = short(dict.fromkeys(kind for kind, _ in cells))
        result.append(
            Grid(
                _title(stack, found) if len(found) > 1 else "",
                sorted({block for _, block in cells}, key=lambda block: -1 if block is None else block),
                list(labels.values()),
                {(labels[kind], block): layers for (kind, block), layers in cells.items()},
            )
        )
    return result


def short(paths: Iterable[str]) -> dict[str, str]:
    """The shortest ending of each path that no other one has."""
    full = [path.split(".") for path in paths]
    labels = {}
    for parts in full:
        others = [other for other in full if other != parts]
        unique = (count for count in range(1, len(parts)) if all(other[-count:] != parts[-count:] for other in others))
        labels[".".join(parts)] = ".".join(parts[-next(unique, len(parts)) :])
    return labels


def _title(stack: str, others: Iterable[str]) -> str:
    """The part of a list's path that tells it from other lists: ``encoder`` of ``encoder.block``."""
    if not stack:
        return OUTSIDE
    known = {part for other in others if other != stack for part in other.split(".")}
    return next((part for part in stack.split(".") if part not in known), stack)
