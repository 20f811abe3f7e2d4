"""``loraga cache``"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lora_ga_cli.gradient.store import ArtifactStore

app = typer.Typer(no_args_is_help=True, help="List, verify and prune the stored gradients.")
CacheDir = Annotated[
    str | None,
    typer.Option(
        "--cache-dir", help="Folder of the cache (default: $LORAGA_CACHE or ~/.cache/loraga).", show_default=False
    ),
]


def _store(cache_dir: str | None) -> ArtifactStore:
    from lora_ga_cli.files import cache_root
    from lora_ga_cli.gradient.store import ArtifactStore

    return ArtifactStore(cache_root(cache_dir))


@app.command("list")
def list_artifacts(cache_dir: CacheDir = None) -> None:
    """List all stored gradients, newest first."""
    from lora_ga_cli.gradient.store import age_in_days
    from lora_ga_cli.report.console import say, size
    from lora_ga_cli.report.tables import print_table

    store = _store(cache_dir)
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
            f"{age_in_days(entry):.1f} d",
        ]
        for entry in entries
    ]
    numeric = ["rows", "layers", "max rank", "size", "age"]
    print_table(["key", "model", *numeric], rows, numeric=numeric)
    say(f"{len(entries)} stored {'gradient' if len(entries) == 1 else 'gradients'} in {store.folder}")


@app.command("verify")
def verify_artifacts(cache_dir: CacheDir = None) -> None:
    """Check the bytes of every stored gradient; exit with 1 if one is damaged."""
    from lora_ga_cli.report.console import say, warn

    store = _store(cache_dir)
    damaged = 0
    for entry in store.verify():
        if entry.damage:
            damaged += 1
            warn(f"{entry.key}: {entry.damage}")
        else:
            say(f"{entry.key}: ok")
    for item in store.leftovers():
        warn(f"{item.name}: left by an interrupted write or set aside; loraga cache prune removes it")
    if damaged:
        say(f"{damaged} damaged: loraga cache prune --damaged removes them; they are estimated again when needed")
        raise typer.Exit(1)


@app.command("prune")
def prune_artifacts(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Keys, or the first characters of keys.", show_default=False)
    ] = None,
    older_than: Annotated[float | None, typer.Option(help="Remove gradients older than this many days.")] = None,
    damaged: Annotated[bool, typer.Option("--damaged", help="Remove gradients that fail verification.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove all gradients.")] = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove stored gradients, and files left by interrupted writes."""
    import shutil

    from lora_ga_cli.errors import Fault, InvalidInput
    from lora_ga_cli.gradient.store import age_in_days
    from lora_ga_cli.report.console import say, size, warn

    store = _store(cache_dir)
    entries = list(store.verify() if damaged else store.entries())
    unmatched = [key for key in keys or [] if not any(entry.key.startswith(key) for entry in entries)]
    if unmatched:
        hint = "loraga cache list shows them"
        raise InvalidInput([Fault("command line", f"there is no stored gradient {key}", hint) for key in unmatched])
    freed, removed = 0, 0
    for entry in entries:
        named = any(entry.key.startswith(key) for key in keys or [])
        old = older_than is not None and age_in_days(entry) > older_than
        if everything or named or old or (damaged and entry.damage):
            if not store.remove(entry):
                warn(f"{entry.key}: in use by another process, so it stays")
                continue
            freed, removed = freed + entry.size, removed + 1
    leftovers = store.leftovers()
    for item in leftovers:
        shutil.rmtree(item)
    say(f"removed {removed} of {len(entries)} gradients ({size(freed)}) and {len(leftovers)} leftovers")
