"""Single files of data sets on the Hugging Face hub: ``hf://datasets/ORG/NAME/PATH``, with ``@REVISION`` after NAME.

A file is fetched once, into the hub's own cache, and is then read as any local file.
"""

from __future__ import annotations

import re
from pathlib import Path

from lora_ga_cli.errors import DataError, Fault
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.reachable import ask_hub_once

HUB = "hf://"
_FILE = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<path>.+)")


def is_remote(file: str) -> bool:
    """Whether a file lies on the hub."""
    return file.startswith(HUB)


def remote_fault(file: str) -> Fault | None:
    """What is wrong with the name of a file on the hub; nothing is fetched."""
    if _FILE.fullmatch(file):
        return None
    return Fault(file, "names no file of a data set", "spell it hf://datasets/ORG/NAME/PATH")


def repository_of(file: str) -> str | None:
    """The name of the data set that a file on the hub belongs to; None for any other file."""
    found = _FILE.fullmatch(file)
    return found["repo"] if found else None


def local_path(file: str) -> Path:
    """The file on this machine; one on the hub is fetched unless it is in the hub's cache.

    Raises:
        DataError: a file on the hub cannot be fetched.
    """
    found = _FILE.fullmatch(file)
    if found is None:
        return resolve_path(file)
    import huggingface_hub

    ask_hub_once()
    revision = (found["revision"] or "").replace("%2F", "/") or None
    try:
        return Path(
            huggingface_hub.hf_hub_download(found["repo"], found["path"], repo_type="dataset", revision=revision)
        )
    except Exception as error:  # the library raises many unrelated types
        raise DataError([_explained(error, file, found["repo"], revision)]) from error


def matching(pattern: str) -> list[str]:
    """The files on the hub that a pattern matches, sorted.

    Raises:
        DataError: the hub cannot be asked.
    """
    import huggingface_hub

    ask_hub_once()
    try:
        return sorted(HUB + str(name) for name in huggingface_hub.HfFileSystem().glob(pattern))
    except Exception as error:
        found = _FILE.fullmatch(pattern)
        raise DataError([_explained(error, pattern, found["repo"] if found else pattern, None)]) from error


def _explained(error: Exception, file: str, repo: str, revision: str | None) -> Fault:
    kind = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kind:
        return Fault(file, f"{repo} is gated", "accept its terms on the hub's page, then `hf auth login`")
    if "RevisionNotFoundError" in kind:
        return Fault(file, f"{repo} has no revision {revision!r}")
    if "RepositoryNotFoundError" in kind:
        return Fault(file, f"no data set {repo!r} on the hub", "a private one wants `hf auth login`")
    if kind & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"}:
        hint = "without a network, give a file on this machine"
        return Fault(file, "cannot be fetched from the hub, and is not in its cache", hint)
    if kind & {"EntryNotFoundError", "RemoteEntryNotFoundError"}:
        return Fault(file, f"{repo} has no such file")
    first_line = next((line for line in str(error).splitlines() if line.strip()), "")
    return Fault(file, f"cannot be fetched from the hub: {type(error).__name__}: {first_line}")
