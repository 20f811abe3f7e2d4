"""The content-addressed store of gradient artifacts on disk, safe for several processes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import ArtifactDamaged
from lora_ga_cli.files import file_sizes, set_aside
from lora_ga_cli.gradient.artifact import MANIFEST_FILE, GradientArtifact
from lora_ga_cli.json_files import read_json
from lora_ga_cli.stores import FolderStore, Notify

GRADIENTS = "gradients"
FIGURES = "figures"
"""Where earlier versions drew figures of gradients that may only be read. Nothing is written there."""


@dataclass(frozen=True)
class Entry:
    """One artifact in the store, as its manifest describes it."""

    key: str
    path: Path
    capacity: int
    layers: int
    size: int
    """Bytes on disk."""
    created: float
    """Seconds since the epoch."""
    info: dict[str, Any]
    damage: str = ""
    """What is wrong with it; empty if no damage is known."""


class ArtifactStore(FolderStore):
    """Artifacts by key, in ``root/gradients/<key>``, and in a cache that is only read.

    A key stands for everything a gradient depends on (`gradient_key`). The capacity is not part of it: an artifact of a
    larger capacity serves all requests for a smaller one, and replaces the smaller one.
    """

    def __init__(self, root: Path, shared: Path | None = None):
        super().__init__(root / GRADIENTS, shared / GRADIENTS if shared is not None else None)
        self.root = root

    def find(self, key: str, capacity: int) -> Entry | None:
        """The stored artifact that would serve this request, without verifying its bytes."""
        entries = map(self._entry, self.places(key))
        return next((entry for entry in entries if not entry.damage and entry.capacity >= capacity), None)

    def get(
        self, key: str, capacity: int, compute: Callable[[], GradientArtifact], notify: Notify
    ) -> tuple[GradientArtifact, bool]:
        """Loads the artifact, or computes and stores it. Two processes that ask for one key compute it once.

        Args:
            key: content address.
            capacity: singular vectors needed.
            compute: estimates the gradient, with at least ``capacity``.
            notify: receives messages for the user: that it waits, that an artifact is damaged.

        Returns:
            The artifact, and whether it was reused.
        """
        if (found := self._load_shared(key, capacity, notify)) is not None:
            return found, True
        waiting = "another process is estimating this gradient; waiting for it"
        with self.claimed(key, notify, waiting):
            stored = self._load(key, notify)
            if stored is not None and stored.capacity >= capacity:
                return stored, True
            if stored is not None:
                notify(_too_few(stored, capacity))
            artifact = replace(compute(), key=key)
            artifact.save(self.path(key))
            return artifact, False

    def _load_shared(self, key: str, capacity: int, notify: Notify) -> GradientArtifact | None:
        """The artifact of the cache that is only read, if it serves the request and none that was made here does."""
        found = self.find(key, capacity)
        for folder in self.places(key):
            if folder == self.path(key) or (found is not None and found.path != folder):
                continue
            try:
                artifact = GradientArtifact.load(folder)
            except ArtifactDamaged as error:
                notify(f"a stored gradient in a cache that may only be read is damaged ({error}); estimating again")
                return None
            if artifact.capacity >= capacity:
                return artifact
            notify(_too_few(artifact, capacity))
        return None

    def _load(self, key: str, notify: Notify) -> GradientArtifact | None:
        if not self.path(key).is_dir():
            return None
        try:
            return GradientArtifact.load(self.path(key))
        except ArtifactDamaged as error:
            aside = set_aside(self.path(key), "damaged")
            notify(f"a stored gradient is damaged and was set aside ({error}); now {aside.name}; estimating again")
            return None

    def entries(self) -> Iterator[Entry]:
        """Every artifact, newest first."""
        yield from sorted((self._entry(folder) for folder in self.stored()), key=lambda entry: -entry.created)

    def verify(self) -> Iterator[Entry]:
        """Every artifact, with its bytes checked against its manifest."""
        for entry in self.entries():
            try:
                GradientArtifact.load(entry.path)
                yield entry
            except ArtifactDamaged as error:
                yield replace(entry, damage=str(error))

    def _entry(self, folder: Path) -> Entry:
        sizes = file_sizes(folder)
        created = folder.stat().st_mtime
        try:
            manifest = read_json(folder / MANIFEST_FILE)
            return Entry(
                key=folder.name,
                path=folder,
                capacity=int(manifest["capacity"]),
                layers=len(manifest["norms"]),
                size=sum(sizes.values()),
                created=created,
                info=manifest["info"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Entry(folder.name, folder, 0, 0, sum(sizes.values()), created, {}, f"no readable manifest ({error})")


def _too_few(stored: GradientArtifact, capacity: int) -> str:
    kept = f"the stored gradient keeps {stored.capacity} singular vectors"
    return f"{kept}, and {capacity} are needed: estimating again"
