"""Paths that options and environment variables give: bundled files, names of folders, and the cache."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from lora_ga_cli.disk import folder_problem, may_only_be_read
from lora_ga_cli.errors import UserError

BUNDLED = "bundled:"
PACKAGE = "package:"
ASSETS = Path(__file__).parent / "assets"
CACHE_VARIABLES = (
    "XDG_CACHE_HOME",
    "LORAGA_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ASSETS_CACHE",
    "HF_XET_CACHE",
    "HF_DATASETS_CACHE",
    "HF_MODULES_CACHE",
    "TORCH_HOME",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "MPLCONFIGDIR",
)
"""Environment variables of loraga and its libraries that name a folder of a cache."""
LONGEST_NAME = 200
"""Bytes of a name. File systems take 255, and temporary and replaced folders add to the name."""


def resolve_path(path: str | Path) -> Path:
    """The file or folder that ``path`` names.

    ``bundled:X`` is X in loraga's assets, ``package:NAME/X`` is X in another Python package (which is not imported),
    and ``~`` is the home folder.

    Raises:
        UserError: X is outside the assets.
    """
    text = str(path)
    if text.startswith(PACKAGE):
        name, _, inside_package = text.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None:
            return Path(f"no-package-{name}") / inside_package
        return Path(spec.origin).parent / inside_package
    if text.startswith(BUNDLED):
        inside = ASSETS / text.removeprefix(BUNDLED)
        if not Path(os.path.normpath(inside)).is_relative_to(ASSETS):
            raise UserError(f"{text} leaves the files that come with loraga")
        return inside
    try:
        return Path(text).expanduser()
    except RuntimeError:  # `~name` of a user that there is not
        return Path(text)


def one_name(text: str) -> str:
    """Checks that ``text`` can be the name of a file or folder in any folder, and returns it.

    Raises:
        ValueError: it is empty, hidden, contains a separator, or is too long.
    """
    if (length := len(text.encode("utf-8", "surrogatepass"))) > LONGEST_NAME:
        raise ValueError(f"is too long: {length} bytes, and a folder's name may have {LONGEST_NAME}")
    if not text or text.startswith((".", "~")) or any(sign in text for sign in "/\\:\0"):
        raise ValueError("must be one plain name: no / \\ : and no dot in front")
    return text


def cache_root(configured: str | None) -> Path:
    """The folder of the cache that is written: as configured, else ``$LORAGA_CACHE``, else ``~/.cache/loraga``.

    If the first of these may only be read (see `shared_cache`), it is the next one that can be written.
    """
    first, *others = _cache_places(configured)
    if not may_only_be_read(first):
        return first
    return next((place for place in others if folder_problem(place) is None), first)


def shared_cache(configured: str | None) -> Path | None:
    """The folder of the cache that is read besides: the first choice, if it may only be read, such as a team's."""
    first = _cache_places(configured)[0]
    return first if first != cache_root(configured) else None


def _cache_places(configured: str | None) -> list[Path]:
    """The folders that may be the cache, those that are preferred first."""
    chosen = [resolve_path(text) for text in (configured, os.environ.get("LORAGA_CACHE")) if text]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # the XDG specification: what is empty or relative counts as not set
    return [*chosen, (folder if folder.is_absolute() else Path.home() / ".cache") / "loraga"]


def forget_empty_variables() -> None:
    """Removes environment variables that name a cache folder and are empty, so that they count as not set.

    Libraries would otherwise read an empty one as the current folder, and write their caches into it.
    """
    for name in CACHE_VARIABLES:
        if os.environ.get(name) == "":
            del os.environ[name]
