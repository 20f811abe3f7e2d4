"""What `loraga inspect` can look into: a run, an adapter in a folder, or a stored gradient."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.gradient.artifact import MANIFEST_FILE
from lora_ga_cli.lora.export import CONFIG_FILE, adapts_parameters
from lora_ga_cli.lora.saved import refusal
from lora_ga_cli.paths import BUNDLED, PACKAGE
from lora_ga_cli.stages.estimate import gradients_of
from lora_ga_cli.stages.inspect.adapter import show_adapter
from lora_ga_cli.stages.inspect.combinations import Subject, misplaced
from lora_ga_cli.stages.inspect.gradient import show_stored
from lora_ga_cli.stages.inspect.options import PLACE, InspectOptions
from lora_ga_cli.stages.inspect.pair import show_pair
from lora_ga_cli.stages.inspect.run import show_run
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder


@dataclass(frozen=True)
class Target:
    """One thing to look into.

    Args:
        text: as it was given.
        folder: where it is.
    """

    text: str
    kind: Subject
    folder: Path


def find(text: str, cache_dir: str | None = None) -> Target:
    """The target that a word on the command line names: a folder, or the beginning of a gradient's key.

    Raises:
        InvalidInput: it names nothing, or several gradients.
    """
    folder = Path(text).expanduser()
    files = {"manifest.json": Subject.run, MANIFEST_FILE: Subject.gradient, CONFIG_FILE: Subject.adapter}
    for file, kind in files.items():
        if (folder / file).is_file():
            return Target(text, kind, folder)
    if folder.is_dir():
        what = f"no run, adapter or gradient (none of {', '.join(files)} is there)"
        raise InvalidInput([Fault(text, what)])
    if text.startswith((BUNDLED, PACKAGE)):
        what = "a model; a run, an adapter or a gradient can be inspected"
        raise InvalidInput([Fault(text, what, f"loraga inspect model.path={text} … inspects its gradient")])
    store = gradients_of(cache_dir)
    hits = [entry for entry in store.stored() if entry.name.startswith(text)]
    if not hits:
        what = f"no such folder, and no gradient in {store.folder} has this key"
        raise InvalidInput([Fault(text, what, "loraga cache list shows the keys")])
    if len(hits) > 1:
        what = f"{len(hits)} gradients have a key that begins so"
        raise InvalidInput([Fault(text, what, f"give more of it: {', '.join(sorted(item.name for item in hits)[:4])}")])
    return Target(text, Subject.key, hits[0])


def find_all(
    words: Sequence[str], given: Collection[str], cache_dir: str | None = None
) -> tuple[list[Target], list[Fault]]:
    """The targets that words name, and all that is wrong with them and with the options beside them.

    Args:
        words: none for a recipe.
        given: see `combinations.misplaced`.

    Raises:
        DamagedFile: what describes the result of a run is not what was written.
    """
    targets, faults = [], []
    for word in words:
        try:
            targets.append(find(word, cache_dir))
        except InvalidInput as error:
            faults += error.faults
    if len(words) > 2:
        return targets, [*faults, Fault(PLACE, f"{len(words)} targets", "give one, or two to compare")]
    if len(targets) < len(words):
        return targets, faults
    if len(targets) == 2:
        what = "a gradient; two runs or adapters can be compared"
        faults += [Fault(one.text, what) for one in targets if one.kind in (Subject.key, Subject.gradient)]
    subject = Subject.pair if len(targets) == 2 else targets[0].kind if targets else Subject.recipe
    for target in targets:
        if target.kind is Subject.run:
            check_result(RunFolder(target.folder), weights=False)  # before the description of its adapter is read
    base_is_read = any(adapts_parameters(target.folder) for target in targets)
    faults += misplaced(subject, given, base_is_read=base_is_read)
    if subject is Subject.run and "--with-base" in given and (reason := refusal(targets[0].folder)):
        faults.append(Fault(PLACE, f"--with-base: {targets[0].text} is {reason}", "leave it out"))
    return targets, faults


def inspect_targets(targets: Sequence[Target], options: InspectOptions) -> dict[str, Any]:
    """Looks into one target, or compares two, prints what it found, and draws figures.

    Returns:
        The same as plain data, with the files of the ``figures``.

    Raises:
        InvalidInput: no layer is selected.
        UserError: a target is not complete.
    """
    if len(targets) == 2:
        return show_pair(targets[0].folder, targets[1].folder, options)
    (target,) = targets
    if target.kind in (Subject.key, Subject.gradient):
        return show_stored(target.folder, options)
    if target.kind is Subject.adapter:
        return show_adapter(target.folder, options)
    return show_run(RunFolder(target.folder), options)
