"""Checks that processes which train together have one command, one version and one folder, also on several machines."""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path

from lora_ga_cli import __version__, distributed
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import RunError
from lora_ga_cli.json_files import sha256_json
from lora_ga_cli.training.run_folder import RunFolder, settings

PATIENCE = 10.0
"""Seconds until a network's file system shows every machine a new file."""


def check_together(config: Config, run: RunFolder) -> None:
    """Has the main process leave a file in the run folder, and the others look for it. All processes must call this.

    Raises:
        RunError: in every process, if one of them has another folder, another version or other options.
    """
    if distributed.count() == 1:
        return
    # a name that nobody has looked for: a network's file system may remember for a while that a name was missing
    name, version, options = distributed.broadcast_from_main(
        (f".together-{uuid.uuid4().hex}", __version__, sha256_json(settings(config)))
    )
    left = run.path / name
    if distributed.is_main():
        run.path.mkdir(parents=True, exist_ok=True)
        left.touch()
    distributed.wait()
    fault = ""
    if version != __version__:
        fault = f"has loraga {__version__}, and process 0 has {version}: install one version on all machines"
    elif options != sha256_json(settings(config)):
        fault = "has other options than process 0: give every machine the same command"
    elif not _appears(left):
        fault = (
            f"does not see what process 0 writes in {run.path}: set output_dir to a folder that all machines share, "
            "with its complete path"
        )
    faults = distributed.gathered(fault)
    if distributed.is_main():
        with contextlib.suppress(OSError):
            left.unlink()
    found = [f"process {index} {text}" for index, text in enumerate(faults) if text]
    if found:
        raise RunError(found[0])


def _appears(file: Path) -> bool:
    until = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
