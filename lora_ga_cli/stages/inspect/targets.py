"""What `loraga inspect` can look into: a run, an adapter in a folder, or a stored gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.files import BUNDLED, PACKAGE, cache_root
from lora_ga_cli.gradient.artifact import MANIFEST_FILE, GradientArtifact
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.stages.inspect.adapter import show_adapter
from lora_ga_cli.stages.inspect.gradient import show_stored
from lora_ga_cli.stages.inspect.options import InspectOptions
from lora_ga_cli.stages.inspect.pair import show_pair
from lora_ga_cli.stages.inspect.run import show_run
from lora_ga_cli.training.run_folder import RunFolder


class Kind(StrEnum):
    """Kinds of targets, as messages name them."""

    run = "a run"
    adapter = "an adapter"
    gradient = "a gradient"


@dataclass(frozen=True)
class Target:
    """One thing to look into.

    Args:
        text: as it was given.
        folder: where it is.
    """

    text: str
    kind: Kind
    folder: Path


def find(text: str, cache_dir: str | None = None) -> Target:
    """The target that a word on the command line names: a folder, or the beginning of a gradient's key.

    Raises:
        InvalidInput: it names nothing, or several gradients.
    """
    folder = Path(text).expanduser()
    files = {"manifest.json": Kind.run, MANIFEST_FILE: Kind.gradient, "adapter_config.json": Kind.adapter}
    for file, kind in files.items():
        if (folder / file).is_file():
            return Target(text, kind, folder)
    if folder.is_dir():
        what = f"no run, adapter or gradient (none of {', '.join(files)} is there)"
        raise InvalidInput([Fault(text, what)])
    if text.startswith((BUNDLED, PACKAGE)):
        what = "a model; a run, an adapter or a gradient can be inspected"
        raise InvalidInput([Fault(text, what, f"loraga inspect model.path={text} … inspects its gradient")])
    store = ArtifactStore(cache_root(cache_dir))
    hits = [entry for entry in store.stored() if entry.name.startswith(text)]
    if not hits:
        what = f"no such folder, and no gradient in {store.folder} has this key"
        raise InvalidInput([Fault(text, what, "loraga cache list shows the keys")])
    if len(hits) > 1:
        what = f"{len(hits)} gradients have a key that begins so"
        raise InvalidInput([Fault(text, what, f"give more of it: {', '.join(sorted(item.name for item in hits)[:4])}")])
    return Target(text, Kind.gradient, hits[0])


def inspect_targets(targets: Sequence[Target], options: InspectOptions) -> dict[str, Any]:
    """Looks into one target, or compares two, prints what it found, and draws figures.

    Returns:
        The same as plain data.

    Raises:
        InvalidInput: a gradient cannot be compared.
        UserError: a target is not complete.
    """
    if len(targets) == 2:
        if faults := [
            Fault(one.text, "a gradient; two runs or adapters can be compared")
            for one in targets
            if one.kind is Kind.gradient
        ]:
            raise InvalidInput(faults)
        return show_pair(targets[0].folder, targets[1].folder, options)
    (target,) = targets
    if target.kind is Kind.gradient:
        return show_stored(GradientArtifact.load(target.folder), target.folder, options)
    if target.kind is Kind.adapter:
        return show_adapter(target.folder, options)
    return show_run(RunFolder(target.folder), options)
