"""``loraga cache``"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.command import Command
from lora_ga_cli.cli.output import Outcome, with_json

if TYPE_CHECKING:
    from lora_ga_cli.data.source_store import SourceStore
    from lora_ga_cli.data.store import RowsEntry, RowStore
    from lora_ga_cli.gradient.store import ArtifactStore, Entry

    AnyStore = ArtifactStore | RowStore | SourceStore

app = typer.Typer(no_args_is_help=True, help="List, verify and prune stored gradients and rows.")
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir", help="Folder of the cache (default: $LORAGA_CACHE or ~/.cache/loraga).", show_default=False
    ),
]


class Kind(StrEnum):
    """What the cache holds."""

    gradients = "gradients"
    rows = "rows"
    sources = "sources"


Only = Annotated[
    Kind | None,
    typer.Option(
        "--only",
        help="Only gradients, tokenized rows, or files and streams as read.",
        show_default=False,
    ),
]


def _places(cache_dir: str | None) -> list[Path]:
    """The folders of the cache: one that may only be read, if it is the first choice, and the one that is written."""
    from lora_ga_cli.paths import cache_root, shared_cache
    from lora_ga_cli.report.console import say

    shared, root = shared_cache(cache_dir), cache_root(cache_dir)
    if shared is None:
        return [root]
    say(f"{shared} may only be read: what is not there is stored in {root}")
    return [shared, root]


def _stores(root: Path, only: Kind | None = None) -> list[AnyStore]:
    from lora_ga_cli.data.source_store import SourceStore
    from lora_ga_cli.data.store import RowStore
    from lora_ga_cli.gradient.store import ArtifactStore

    stores: dict[Kind, AnyStore] = {
        Kind.gradients: ArtifactStore(root),
        Kind.rows: RowStore(root),
        Kind.sources: SourceStore(root),
    }
    return [store for kind, store in stores.items() if only in (None, kind)]


@app.command("list", cls=Command)
@with_json
def list_entries(cache_dir: CacheDir = None) -> dict[str, Any]:
    """List all stored gradients and rows, newest first."""
    from lora_ga_cli.data.source_store import SourceStore
    from lora_ga_cli.data.store import RowStore
    from lora_ga_cli.gradient.store import ArtifactStore

    found: dict[str, Any] = {"gradients": [], "rows": [], "sources": []}
    for root in (places := _places(cache_dir)):
        gradients, rows, sources = ArtifactStore(root), RowStore(root), SourceStore(root)
        _list_gradients(gradients)
        _list_rows(rows, "tokenized split")
        _list_rows(sources, "large file or stream, as it was read", "large files and streams, as they were read")
        for kind, store in (("gradients", gradients), ("rows", rows), ("sources", sources)):
            found[kind] += [_plain(entry) for entry in store.entries()]
    return {"folder": places[-1], "only_read": places[0] if len(places) > 1 else None, **found}


def _plain(entry: Entry | RowsEntry) -> dict[str, Any]:
    """What is known of an entry, as plain data; ``created`` is in seconds since the epoch."""
    return dataclasses.asdict(entry)


def _list_gradients(store: ArtifactStore) -> None:
    from lora_ga_cli.report.console import say, size
    from lora_ga_cli.report.tables import print_table
    from lora_ga_cli.stores import age_in_days

    entries = list(store.entries())
    if not entries:
        say(f"there are no stored gradients in {store.folder}")
        return
    rows = [
        [
            entry.key,
            str(entry.info.get("model", "?")),
            str(entry.info.get("rows", "?")),
            str(entry.layers),
            str(entry.capacity // 2),
            size(entry.size),
            f"{age_in_days(entry.created):.1f} d",
        ]
        for entry in entries
    ]
    numeric = ["rows", "layers", "max rank", "size", "age"]
    print_table(["key", "model", *numeric], rows, numeric=numeric)
    gradients = "gradient" if len(entries) == 1 else "gradients"
    say(f"{len(entries)} stored {gradients} in {store.folder}: {size(sum(entry.size for entry in entries))}")


def _list_rows(store: RowStore | SourceStore, one: str, several: str | None = None) -> None:
    from lora_ga_cli.report.console import say, size
    from lora_ga_cli.report.tables import print_table
    from lora_ga_cli.stores import age_in_days

    entries = list(store.entries())
    if not entries:
        return
    numeric = ["rows", "size", "age"]
    rows = [
        [
            entry.key,
            entry.name,
            entry.source,
            f"{entry.rows:,}",
            size(entry.size),
            f"{age_in_days(entry.created):.1f} d",
        ]
        for entry in entries
    ]
    print_table(["key", "split", "source", *numeric], rows, numeric=numeric)
    what = one if len(entries) == 1 else several or f"{one}s"
    say(f"{len(entries)} {what} in {store.folder}: {size(sum(entry.size for entry in entries))}")


@app.command("verify", cls=Command)
@with_json
def verify_entries(cache_dir: CacheDir = None) -> Outcome:
    """Check the bytes of everything that is stored; exit with 1 if something is damaged."""
    from lora_ga_cli.report.console import say, warn

    checked: dict[str, str] = {}
    leftovers: list[str] = []
    places = _places(cache_dir)
    own, theirs = 0, 0
    for store in (store for root in places for store in _stores(root)):
        is_own = store.folder.is_relative_to(places[-1])
        for entry in store.verify():
            checked[entry.key] = entry.damage or checked.get(entry.key, "")
            if entry.damage:
                warn(f"{entry.key}: {entry.damage}")
                own, theirs = own + is_own, theirs + (not is_own)
            else:
                say(f"{entry.key}: ok")
        if not is_own:
            continue  # its owner removes what is left there
        for item in store.leftovers():
            leftovers.append(item.name)
            warn(f"{item.name}: left by an interrupted write or set aside; loraga cache prune removes it")
    damaged = {key: damage for key, damage in checked.items() if damage}
    if theirs:
        again = f"they are made again in {places[-1]} when needed"
        say(f"{theirs} damaged in {places[0]}, which may only be read: its owner has to remove them; {again}")
    if own:
        there = shlex.join(["--cache-dir", str(places[-1])]) if len(places) > 1 else ""
        prune = f"loraga cache prune --damaged {there}".rstrip()
        say(f"{own} damaged: {prune} removes them; they are made again when needed")
    found = {"intact": [key for key in checked if key not in damaged], "damaged": damaged, "leftovers": leftovers}
    return Outcome(found, 1 if damaged else 0)


@app.command("prune", cls=Command)
@with_json
def prune_entries(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys, or the first characters of keys.", show_default=False)
    ] = None,
    older_than: Annotated[float | None, typer.Option(help="Remove what is older than this many days.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove what fails verification.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove everything.")] = False,
    only: Only = None,
    cache_dir: CacheDir = None,
) -> dict[str, Any]:
    """Remove stored gradients and rows, and files left by interrupted writes."""
    import shutil

    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.gradient.store import FIGURES
    from lora_ga_cli.paths import cache_root, shared_cache
    from lora_ga_cli.report.console import say
    from lora_ga_cli.stores import age_in_days

    root = cache_root(cache_dir)
    if (shared := shared_cache(cache_dir)) is not None:
        what = f"{shared} may only be read, and nothing can be removed there"
        raise InvalidInput([Fault("command line", what, f"what is stored in yours: --cache-dir {root}")])
    entries: dict[AnyStore, list[Entry | RowsEntry]] = {
        store: [*(store.verify() if damaged else store.entries())] for store in _stores(root, only)
    }
    known = [entry.key for some in entries.values() for entry in some]
    _check_keys(keys or [], known, only)

    def is_chosen(entry: Entry | RowsEntry) -> bool:
        named = any(entry.key.startswith(key) for key in keys or [])
        old = older_than is not None and age_in_days(entry.created) > older_than
        return everything or named or old or (damaged and bool(entry.damage))

    pruned = [_prune_store(store, some, is_chosen) for store, some in entries.items()]
    if everything and only is None:
        shutil.rmtree(root / FIGURES, ignore_errors=True)
    if not known and not any(store.leftovers() for store in entries):
        say("nothing is stored")
    return {
        "removed": [key for one in pruned for key in one.removed],
        "in_use": [key for one in pruned for key in one.in_use],
        "bytes": sum(one.bytes for one in pruned),
        "leftovers": sum(one.leftovers for one in pruned),
    }


def _check_keys(keys: Sequence[str], known: Sequence[str], only: Kind | None) -> None:
    """Refuses keys that nothing stored begins with.

    Raises:
        InvalidInput
    """
    from lora_ga_cli.errors import Fault, InvalidInput

    unmatched = [key for key in keys if not any(stored.startswith(key) for stored in known)]
    if unmatched:
        kinds = {
            Kind.gradients: "no stored gradient {0}",
            Kind.rows: "no tokenized split {0}",
            Kind.sources: "no stored file {0}",
        }
        what = "there is " + " and ".join(text for kind, text in kinds.items() if only in (None, kind))
        hint = "loraga cache list shows them"
        raise InvalidInput([Fault("command line", what.format(key), hint) for key in unmatched])


@dataclasses.dataclass
class _Pruned:
    """What was removed from a store.

    Args:
        removed: keys of entries.
        in_use: keys of entries that stay, because another process makes them again.
        bytes: the size of the removed entries.
        leftovers: how many leftovers of interrupted writes were removed.
    """

    removed: list[str] = dataclasses.field(default_factory=list)
    in_use: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0
    leftovers: int = 0


def _prune_store(
    store: AnyStore, entries: Sequence[Entry | RowsEntry], is_chosen: Callable[[Entry | RowsEntry], bool]
) -> _Pruned:
    """Removes the chosen entries of a store, and all its leftovers, and says how many."""
    import shutil

    from lora_ga_cli.report.console import say, size, warn

    pruned = _Pruned()
    for entry in filter(is_chosen, entries):
        if store.discard(entry.key):
            pruned.removed.append(entry.key)
            pruned.bytes += entry.size
        else:
            warn(f"{entry.key}: in use by another process, so it stays")
            pruned.in_use.append(entry.key)
    leftovers = store.leftovers()
    for item in leftovers:
        shutil.rmtree(item)
    pruned.leftovers = len(leftovers)
    if entries or leftovers:
        what = f"{store.folder.name}: removed {len(pruned.removed)} of {len(entries)} ({size(pruned.bytes)})"
        say(f"{what} and {len(leftovers)} leftovers")
    return pruned
