"""What the files of a run were when they were written, as its manifest keeps it, and checks of them before their use.

``files`` of the manifest are those that training begins with, ``result_files`` its result, and ``metrics`` the metrics
of a finished run. Runs of versions before this was so have none of these entries, and their files are not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_ga_cli.digests import check_file, check_files, damage, written, written_in
from lora_ga_cli.distributed import is_main
from lora_ga_cli.json_files import write_json
from lora_ga_cli.methods.loading import ADAPTER_DESCRIPTIONS
from lora_ga_cli.model.written import holds_weights
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.report.html.command import command_of
from lora_ga_cli.training import metrics
from lora_ga_cli.training.result_files import result_files
from lora_ga_cli.training.run_folder import START_AGAIN, LinkFolder, RunFolder

FINISH_AGAIN = "run its train command again, which makes it anew from the last checkpoint"
"""What makes a file of the result anew."""


def note_start(run: RunFolder, file: Path) -> None:
    """Keeps in the manifest what the initialization is that a link begins with, in the place of earlier links', which
    are not read again. Only the main process writes."""
    files = run.manifest.get("files")
    if files is not None and is_main():
        kept = {name: entry for name, entry in files.items() if name == run.config_file.name}
        run.update_manifest(files=kept | {str(file.relative_to(run.path)): written(file)})


def stored_start(run: RunFolder, folder: LinkFolder) -> Path | None:
    """The file of a link's initialization, if it is stored; it has the bytes that were written.

    Raises:
        DamagedFile: it has not, or is missing, and a checkpoint continues from it.
    """
    file, files = folder.init_file, run.manifest.get("files")
    name = str(file.relative_to(run.path))
    continued = any(folder.checkpoints.glob("checkpoint-*"))
    if files is None or (continued and name not in files):
        return file if file.exists() else None
    if name not in files:
        return None  # the process was killed before the manifest named it, and nothing continues from it
    if not file.exists() and not continued:
        if is_main():
            warn(f"{file} is missing, and is made again")
        return None
    check_file(file, files[name], START_AGAIN)
    return file


def check_start(run: RunFolder, folder: LinkFolder) -> None:
    """Checks that the file of a link's initialization has the bytes that were written.

    Raises:
        DamagedFile: it has not, or is missing.
    """
    file = folder.init_file
    if (entry := run.manifest.get("files", {}).get(str(file.relative_to(run.path)))) is not None:
        check_file(file, entry, START_AGAIN)


def result_entries(run: RunFolder) -> dict[str, Any]:
    """What the result and the metrics are now, as the manifest keeps it."""
    files = written_in(run.path, result_files(run.path))
    return {"result_files": files, "metrics": metrics.state(run.metrics_file)}


def check_result(run: RunFolder, *, weights: bool = True) -> None:
    """Checks that the result's files have the bytes that were written.

    Args:
        weights: whether those with weights are checked, which may take seconds, or the others.

    Raises:
        DamagedFile
    """
    manifest = run.manifest
    files = manifest.get("result_files")
    if files is None and weights and manifest.get("finished"):
        step("files", f"{run.path} was made before runs kept digests of their files: damage would not be noticed")
    chosen = {name: entry for name, entry in (files or {}).items() if holds_weights(name) == weights}
    check_files(run.path, chosen, finish_again(run))


def check_adapter(run: RunFolder) -> None:
    """`check_result` where the result is an adapter, whose files are small; of a complete model, only the sizes.

    Raises:
        DamagedFile
    """
    files = run.manifest.get("result_files", {})
    if any(name in files for name in ADAPTER_DESCRIPTIONS):
        check_files(run.path, files, finish_again(run))
    else:
        sizes = {name: {"size": entry["size"]} for name, entry in files.items() if "size" in entry}
        check_files(run.path, sizes, finish_again(run))


def finish_again(run: RunFolder) -> str:
    """What makes a file of the result anew, with the command where the run says it."""
    command = command_of(run.manifest)
    return f"{FINISH_AGAIN} ({command})" if command.startswith("loraga train ") else FINISH_AGAIN


def damaged_result(run: RunFolder) -> str:
    """What is wrong with the result's files, as a sentence; empty if nothing is."""
    for name, entry in run.manifest.get("result_files", {}).items():
        if what := damage(run.path / name, entry):
            return f"{run.path / name} {what}"
    return ""


def reopen(run: RunFolder) -> None:
    """Forgets that the run has finished, so that its result is made again. Only the main process writes."""
    if is_main():
        left = {"finished", "result_files", "metrics"}
        kept = {name: entry for name, entry in run.manifest.items() if name not in left}
        write_json(run.manifest_file, kept, digest=True)


def points_of(run: RunFolder, notify: Callable[[str], object] | None = None) -> list[dict[str, Any]]:
    """The points of a run's metrics.

    Args:
        notify: is told if some of a finished run were lost or changed; by default it is a warning.
    """
    expected = run.manifest.get("metrics")
    if expected is not None and (what := metrics.damage(run.metrics_file, expected)):
        (notify or warn)(what)
    return metrics.read(run.metrics_file)
