"""Where configuration groups and recipes lie: in a checkout, in an installed wheel, and in a user's folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
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


@cache
def _groups(conf: Path) -> tuple[str, ...]:
    return tuple(sorted(item.name for item in conf.iterdir() if item.is_dir() and any(item.glob("*.yaml"))))


@dataclass(frozen=True)
class Locations:
    """The folders that a composition may read.

    Args:
        user_dir: the folder given by ``--config-dir``. Its files win over the shipped ones.
    """

    user_dir: Path | None = None

    @property
    def conf(self) -> Path:
        return _shipped("conf")

    @property
    def recipes(self) -> Path:
        return _shipped("recipes")

    @property
    def primary(self) -> Path:
        return self.conf / f"{PRIMARY}.yaml"

    def groups(self) -> list[str]:
        """Names of the configuration groups; a user's folder adds choices to them."""
        return list(_groups(self.conf))

    def choices(self, group: str) -> dict[str, Path]:
        """The files of a group by choice; the user's folder wins."""
        folders = [_shipped("recipes")] if group == "recipe" else [self.conf / group]
        if self.user_dir is not None:
            folders.append(self.user_dir / ("recipes" if group == "recipe" else group))
        return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml")) if file.is_file()}


def shown(file: Path) -> str:
    """A path as a person would type it: relative to where they are, if that is shorter."""
    try:
        relative = str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)
    return relative
