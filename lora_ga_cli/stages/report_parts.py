"""What a report shows of a run beyond its own files: rows, gradient, inspection, answers.

A part that cannot be had is a sentence in the report. It keeps no report from being written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_ga_cli.config.began import located
from lora_ga_cli.config.compose import reconfigured
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import DamagedFile, UserError
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.report import console
from lora_ga_cli.report.html.record import ShownRow
from lora_ga_cli.stages.inputs import Inputs, prepare_inputs
from lora_ga_cli.stages.inspect.run import inspect_run
from lora_ga_cli.stages.inspect.stored import read_inspection
from lora_ga_cli.stages.report_answers import answers_of
from lora_ga_cli.stages.report_gradient import gradient_of
from lora_ga_cli.stages.report_rows import rows_seen
from lora_ga_cli.training.run_files import check_adapter
from lora_ga_cli.training.run_folder import RunFolder

MOST_DATA_SETS = 4
"""Different training rows that one report loads."""
OF_PASSES = ("batch_size", "micro_batch_size", "max_tokens", "group_by_length")
Seen = tuple[Sequence[ShownRow], Mapping[str, Any] | None]
"""Shown rows and their lengths."""


class Parts:
    """Collects the parts of several runs, and loads rows that they share once."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], tuple[Seen, str]] = {}
        self.damaged: dict[str, list[str]] = {}
        """By the run's folder, what could not be read of it because a file is damaged."""

    def note_damage(self, run: RunFolder) -> Callable[[str], None]:
        """What receives the damage of a run's files, and shows it as a warning."""

        def note(what: str) -> None:
            console.warn(what)
            self.damaged.setdefault(str(run.path), []).append(what)

        return note

    def of(
        self, run: RunFolder, results: Mapping[Path, Mapping[str, Any]], inputs: Inputs | None = None
    ) -> dict[str, Any]:
        """Arguments of `RunRecord`.

        Args:
            results: of evaluations, by file.
            inputs: of the run, if they are loaded.
        """
        absent: dict[str, str] = {}
        found: dict[str, Any] = {"absent": absent}
        found["answers"], problem = answers_of(results, self.note_damage(run))
        if problem:
            absent["answers"] = f"{problem}."
        try:
            config = inputs.config if inputs is not None else reconfigured(located(run.read_config(), run.began_in), ())
        except UserError as error:
            return found | {"absent": absent | {"rows": _because("the configuration cannot be read", error)}}
        found["size"] = size_of(run, config)
        found["inspection"], absent["inspection"] = _inspection(run, self.note_damage(run))
        found["gradient"], absent["gradient"] = gradient_of(run, config, found["inspection"])
        (found["rows"], found["lengths"]), absent["rows"] = self._rows(run, config, inputs)
        found["absent"] = {part: why for part, why in absent.items() if why}
        return found

    def _rows(self, run: RunFolder, config: Config, inputs: Inputs | None) -> tuple[Seen, str]:
        nothing: Seen = ((), None)
        digest = run.manifest.get("data", {}).get("train", {}).get("sha256")
        if digest is None:
            return nothing, "It has not begun, so that its rows are not known."
        options = config.trainer.model_dump(include=set(OF_PASSES))
        key = (digest, config.seed, config.dataset.packing, *options.values())
        if key not in self._seen and len(self._seen) == MOST_DATA_SETS:
            return (
                nothing,
                f"Its rows are not shown: a report reads those of {MOST_DATA_SETS} runs that differ in rows or order.",
            )
        if key not in self._seen:
            self._seen[key] = _read(config, digest, inputs)
        return self._seen[key]


def size_of(run: RunFolder, config: Config) -> str:
    """The rank or width of a run, and that of its saved adapter where it is another one; empty if it has none."""
    method, saved = method_of(config), run.manifest.get("adapter_rank")
    kind = method.output.size
    if not kind:
        return ""
    if kind != "rank" or "rank" not in config.shared_uses:
        return "" if saved is None else f"{kind} {saved}"
    ranks = {config.rank, *config.rank_pattern.values()}
    trained = f"rank {config.rank}" if len(ranks) == 1 else f"ranks from {min(ranks)} to {max(ranks)}"
    if saved is None or saved == max(ranks):
        return trained
    why = method.describe_saved(saved)
    return f"{trained} (saved as an adapter of rank {saved}" + (f": {why})" if why else ")")


def _read(config: Config, digest: str, inputs: Inputs | None) -> tuple[Seen, str]:
    """What is shown of the rows of a digest, or why they cannot be had."""
    nothing: Seen = ((), None)
    try:
        with console.quiet():
            inputs = inputs or prepare_inputs(config, splits=("train",))
    except Exception as error:  # libraries raise many types for data that is gone
        return nothing, _because("its rows cannot be read", error)
    if inputs.train.sha256 != digest:
        return nothing, "The data set has other rows now than the run was trained on."
    return rows_seen(inputs), ""


def _inspection(run: RunFolder, notify: Callable[[str], object]) -> tuple[dict[str, Any] | None, str]:
    """The run's inspection, made now if there is none. One of a damaged adapter is neither shown nor made."""
    if not run.finished:
        return None, ""
    try:
        check_adapter(run)
        kept = read_inspection(run)
        return inspect_run(run, with_base=False) if kept is None else kept, ""
    except DamagedFile as error:
        notify(f"{run.path}: what was learned is not shown: {error}")
        return None, _because("it is not shown", error)
    except Exception as error:  # an adapter can be of many forms
        return None, _because("it cannot be inspected", error)


def _because(what: str, error: Exception) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{what[0].upper()}{what[1:]}: {kind}{' '.join(str(error).split())}"
