"""Where configuration groups and recipes lie: in a checkout, in an installed wheel, and in a user's own folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
PRIMARY = "loraga"
"""Name of the primary configuration, ``conf/loraga.yaml``."""
SCHEMA = "schema"
"""Name under which the primary configuration finds every option's default."""


def _shipped(name: str) -> Path:
    """A folder that lies beside the package in a checkout, and inside it once installed from a wheel."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


@dataclass(frozen=True)
class Locations:
    """The folders that a composition may read.

    Args:
        own: the folder given by ``--config-dir``; searched first.
    """

    own: Path | None = None

    @property
    def conf(self) -> Path:
        return _shipped("conf")

    @property
    def _roots(self) -> list[Path]:
        return ([self.own] if self.own is not None else []) + [self.conf]

    def groups(self) -> list[str]:
        """Names of the configuration groups."""
        found = {
            item.name for root in self._roots for item in root.iterdir() if item.is_dir() and any(item.glob("*.yaml"))
        }
        return sorted(found - {"recipes", "hydra"})

    def choices(self, group: str) -> dict[str, Path]:
        """The files of a group by choice; the user's own folder wins."""
        folders = [_shipped("recipes")] if group == "recipe" else [self.conf / group]
        if self.own is not None:
            folders.append(self.own / ("recipes" if group == "recipe" else group))
        return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}

    def is_own(self, file: Path) -> bool:
        return self.own is not None and file.is_relative_to(self.own)


def shown(file: Path) -> str:
    """A path as a person would type it: relative to where they are, if that is shorter."""
    try:
        relative = str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
    return relative
