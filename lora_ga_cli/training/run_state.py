"""How far a run is, as the files in its folder say. Nothing is written, and nothing heavy is imported."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lora_ga_cli.errors import DamagedFile
from lora_ga_cli.training.manifest import read_manifest
from lora_ga_cli.training.metrics import point_in
from lora_ga_cli.training.run_names import CONFIG, MANIFEST, METRICS, is_locked

LAST_INTERVALS = 20
"""How many intervals between two logged points the time of a step is the median of."""
State = Literal["running", "stopped", "finished", "failed", "damaged"]


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Args:
        state: ``running`` while a process works on it; ``failed`` if the last command ended with an error, and
            ``stopped`` if it was interrupted or killed; ``damaged`` if its manifest cannot be read.
        total: steps of the complete run. This and what follows is None where it is not known (yet).
        losses: of the logged training steps, in order.
        loss, validation_loss: the last ones; of a finished run, those of its result.
        seconds_left: estimated from the time of the last steps; only of a run that is running.
        seconds_taken: what training took; only of a finished run.
        memory_bytes: the peak of a GPU, or what the process used, at the last logged step.
        error: what it failed with, or what is wrong with its manifest.
    """

    name: str
    state: State
    step: int | None = None
    total: int | None = None
    losses: Sequence[float] = ()
    loss: float | None = None
    validation_loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    seconds_left: float | None = None
    seconds_taken: float | None = None
    error: str | None = None

    def as_data(self) -> dict[str, Any]:
        """The same as plain data, without the series of losses, which the run's metrics file has."""
        return {name: value for name, value in asdict(self).items() if name != "losses"}


class Points:
    """The points of a metrics file. Each look reads only what was added since the last one.

    A line that is being written is read at the next look. A file that was replaced is read from its beginning.
    """

    def __init__(self, file: Path):
        self.file = file
        self.points: list[dict[str, Any]] = []
        self._read = 0
        self._identity: tuple[int, int] | None = None

    def look(self) -> list[dict[str, Any]]:
        """All points so far."""
        try:
            with self.file.open("rb") as opened:
                stat = self.file.stat()
                identity = stat.st_dev, stat.st_ino
                if identity != self._identity or stat.st_size < self._read:
                    self.points, self._read, self._identity = [], 0, identity
                opened.seek(self._read)
                added = opened.read()
        except OSError:
            self.points, self._read, self._identity = [], 0, None
            return self.points
        complete = added[: added.rfind(b"\n") + 1]
        self._read += len(complete)
        self.points += [point for line in complete.splitlines() if (point := point_in(line)) is not None]
        return self.points


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or of one that is being created."""
    return any((folder / name).is_file() for name in (CONFIG, MANIFEST)) or is_locked(folder)


class WatchedRun:
    """A run whose state is read again and again.

    Args:
        folder: its folder, which need not exist yet.
        name: what it is called on the screen.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self._points = Points(folder / METRICS)

    def look(self, now: float) -> RunState:
        """The state at this moment.

        Args:
            now: seconds since the epoch.
        """
        locked = is_locked(self.folder)  # before the manifest, which a run finishes before it lets go of the lock
        points = self._points.look()
        manifest, damage = self._manifest()
        trained = [point for point in points if point.get("loss") is not None]
        last: dict[str, Any] = trained[-1] if trained else {}
        evaluated: dict[str, Any] = next((point for point in reversed(points) if "eval_loss" in point), {})
        if damage and not locked:
            state: State = "damaged"
        elif manifest.get("finished"):
            state = "finished"
        elif locked:
            state = "running"
        else:
            state = "failed" if manifest.get("failed") else "stopped"
        done, total = points[-1]["step"] if points else 0, manifest.get("total_steps")
        finished = state == "finished"
        return RunState(
            self.name,
            state,
            step=manifest.get("steps", done) if finished else done,
            total=total,
            losses=[point["loss"] for point in trained],
            loss=manifest.get("training_loss") if finished else last.get("loss"),
            validation_loss=manifest.get("validation_loss") if finished else evaluated.get("eval_loss"),
            learning_rate=last.get("learning_rate"),
            tokens_per_second=last.get("tokens_per_second"),
            memory_bytes=last.get("memory_bytes"),
            seconds_left=_seconds_left(points, total, now) if state == "running" else None,
            seconds_taken=manifest.get("training_seconds") if finished else None,
            error=damage or (manifest.get("failed") if state == "failed" else None),
        )

    def _manifest(self) -> tuple[dict[str, Any], str]:
        """The content of the manifest, and what is wrong with it."""
        try:
            return read_manifest(self.folder / MANIFEST), ""
        except DamagedFile as error:
            return {}, f"{error.file} {error.what}"
        except OSError:
            return {}, ""


def _seconds_left(points: Sequence[dict[str, Any]], total: int | None, now: float) -> float | None:
    """What the remaining steps take, by the median time of the last ones; None before there are two points.

    (A median, because an evaluation, a checkpoint or an interruption may lie between two points.)
    """
    timed = [point for point in points[-LAST_INTERVALS - 1 :] if isinstance(point.get("time"), int | float)]
    pairs = list(itertools.pairwise(timed))
    paces = [
        (last["time"] - first["time"]) / (last["step"] - first["step"])
        for first, last in pairs
        if last["step"] > first["step"] and last["time"] >= first["time"]
    ]
    if not paces or total is None:
        return None
    left = (total - timed[-1]["step"]) * statistics.median(paces) - max(now - timed[-1]["time"], 0.0)
    return max(left, 0.0) if math.isfinite(left) else None
