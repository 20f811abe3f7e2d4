"""Names of layers as kinds and blocks: ``model.layers.3.mlp.up_proj`` is the kind ``mlp.up_proj`` in block 3."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"(^|\.)\d+(?=\.|$)")


def kind_of(name: str) -> str:
    """A layer's name with ``*`` in the place of every number."""
    return NUMBER.sub(r"\1*", name)


def block_of(name: str) -> int | None:
    """The first number in a layer's name; None if it has none."""
    found = NUMBER.search(name)
    return int(found.group().strip(".")) if found else None


def block_name(name: str) -> str:
    """A layer's name up to its first number, which tells a decoder's blocks from an encoder's; empty if it has none."""
    found = NUMBER.search(name)
    return name[: found.end()] if found else ""


def by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """The layers of each kind, in their order. A kind is called by what follows the block's number where that tells it
    from all others, else by its complete name."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(kind_of(name), []).append(name)
    shorts = [kind.partition("*.")[2] or kind for kind in found]
    return {
        (short if shorts.count(short) == 1 else kind): layers
        for short, (kind, layers) in zip(shorts, found.items(), strict=True)
    }


def one_by_one(names: Sequence[str]) -> dict[str, list[str]]:
    """Each layer by itself, called by what follows the parts that begin all names."""
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(len(item) > shared + 1 and item[shared] == parts[0][shared] for item in parts):
        shared += 1
    return {".".join(item[shared:]): [name] for item, name in zip(parts, names, strict=True)}
