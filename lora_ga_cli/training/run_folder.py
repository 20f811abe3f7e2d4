"""The folder of one run: its files, the configuration that it belongs to, and how far it was trained.

The manifest also says what the other files were when they were written (see `training.run_files`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lora_ga_cli.config.extra import OF_TRACKERS
from lora_ga_cli.config.schema import Config, DatasetConfig
from lora_ga_cli.digests import check_file, written
from lora_ga_cli.distributed import is_main
from lora_ga_cli.errors import DamagedFile, RunError
from lora_ga_cli.files import atomic_file, set_aside
from lora_ga_cli.json_files import sha256_json, write_json
from lora_ga_cli.methods.base import Link, method_of
from lora_ga_cli.methods.loading import readable_adapter
from lora_ga_cli.paths import resolve_path
from lora_ga_cli.report.console import warn
from lora_ga_cli.training.arguments import adapter_dtype
from lora_ga_cli.training.manifest import FORMAT, read_manifest
from lora_ga_cli.training.run_names import CONFIG, LOCK_WAIT, MANIFEST, METRICS, lock_file

IGNORED_OPTIONS = {
    "name", "output_dir", "cache_dir", "overwrite", "device", "recipe", "eval",
}  # fmt: skip
"""Options that do not change the result of a run: two runs that differ only in them are the same run."""
IGNORED_TRAINER_OPTIONS = {
    "logging_steps",
    "save_total_limit",
    "report_to",
    "dataloader_workers",
    "micro_batch_size",
    "max_tokens",
    "speed",
    "flatten",
    "chunked_loss",
    "kernels",
    "compile",
    "gradient_checkpointing",
    "gradient_checkpointing_every",
    "gradient_checkpointing_offload",
    "report",
}
IGNORED_GRADIENT_OPTIONS = {"micro_batch_size", "max_tokens", "capacity", "offload"}

SUMMARY = (
    "base",
    "adapter_rank",
    "steps",
    "learning_rate",
    "training_loss",
    "training_loss_steps",
    "validation_loss",
    "training_seconds",
    "saved_difference",
    "truncation_error",
    "started",
    "finished",
)
"""The entries of a manifest that tell how a run ended."""
LENGTHS = ("trainer.max_steps ", "trainer.epochs ")
"""Beginnings of differences between a run and a longer or shorter one."""

START_AGAIN = "start the run again with overwrite=true, which renames the old folder"
"""What is left to do where a file is damaged that nothing can make again."""
WRITE_AGAIN = "run its train command again, which writes it anew"
"""What makes the configuration anew."""


@dataclass(frozen=True)
class LinkFolder:
    """Paths of one link of a run: its initialization, its checkpoints, and, in a chain, its result."""

    path: Path

    @property
    def init_file(self) -> Path:
        return self.path / "init.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained link, as a standard LoRA adapter for the base with the links before it."""
        return self.path / "adapter"

    @property
    def state_file(self) -> Path:
        """What the optimizer kept at the end of the link, where the next link begins with it."""
        return self.path / "optimizer.safetensors"

    @property
    def result_file(self) -> Path:
        """The losses and steps of the finished link; it is written last."""
        return self.path / "link.json"

    @property
    def cost_file(self) -> Path:
        """What training the link costs, with every session so far."""
        return self.path / "cost.json"

    @property
    def finished(self) -> bool:
        return self.result_file.exists()


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder. Its top level is the result: `PeftModel.from_pretrained(base, path)` loads it."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / CONFIG

    @property
    def manifest_file(self) -> Path:
        return self.path / MANIFEST

    def link(self, link: Link) -> LinkFolder:
        """The folder of one link; it is the run folder if there is only one."""
        return LinkFolder(self.path if link.count == 1 else self.path / "links" / str(link.index))

    @property
    def metrics_file(self) -> Path:
        return self.path / METRICS

    @property
    def figure_file(self) -> Path:
        return self.path / "loss.png"

    @property
    def card_file(self) -> Path:
        return self.path / "README.md"

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of the manifest; empty before the run is started.

        Raises:
            DamagedFile
        """
        return read_manifest(self.manifest_file, self._without_manifest()) if self.manifest_file.exists() else {}

    @property
    def lost_manifest(self) -> bool:
        """Whether the manifest is missing, while files are there that are written after it."""
        only = LinkFolder(self.path)
        later = (only.init_file, only.checkpoints, self.metrics_file, self.path / "links")
        return not self.manifest_file.exists() and self.config_file.exists() and any(item.exists() for item in later)

    def require_manifest(self) -> None:
        """Raises:
        DamagedFile: the run's manifest is missing.
        """
        if self.lost_manifest:
            raise DamagedFile(self.manifest_file, "is missing", self._without_manifest())

    def _without_manifest(self) -> str:
        """What is left to do where the manifest is damaged, which nothing can make again."""
        if not (files := readable_adapter(self.path)):
            return START_AGAIN
        return (
            f"the adapter beside it can be read, and is used without it: copy {' and '.join(files)} into a folder of "
            f"their own, which loraga eval takes too; or {START_AGAIN}"
        )

    @property
    def finished(self) -> bool:
        return bool(self.manifest.get("finished"))

    def summary(self) -> dict[str, Any]:
        """The result of a finished run as plain data."""
        manifest = self.manifest
        return {"run": self.path, **{name: manifest[name] for name in SUMMARY if name in manifest}}

    def update_manifest(self, **entries: Any) -> None:
        """Adds entries to the manifest. Only the main process writes."""
        if is_main():
            write_json(self.manifest_file, self.manifest | entries, digest=True)

    def write_config(self, config: Config) -> None:
        """Stores the resolved configuration. Only the main process writes."""
        if not is_main():
            return
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        data = f"# Resolved configuration of this run\n{text}".encode()
        if self.config_file.exists() and self.config_file.read_bytes() == data:
            return
        with atomic_file(self.config_file) as temporary:
            temporary.write_bytes(data)
            if (files := self.manifest.get("files")) is not None:
                # before the file itself, of which a killed process would leave the one or the other
                name = self.config_file.name
                known = files.get(name, {})
                now = written(self.config_file)["sha256"] if self.config_file.exists() else None
                before = now if now == known.get("before") else known.get("sha256")
                self.update_manifest(files=files | {name: written(temporary) | {"before": before}})

    @property
    def began_in(self) -> Path:
        """The folder in which the run's command was given, from which its relative paths count.

        Where that folder is gone, the whole project may have been moved: then it is the one that lies as that one lay
        from the run.
        """
        stored = self.manifest.get("working_folder")
        if stored is None:
            return Path.cwd()
        folder = Path(stored["path"])
        return folder if folder.is_dir() else (self.path / stored["from_run"]).resolve()

    def read_config(self) -> dict[str, Any]:
        """The stored configuration, as plain data.

        Raises:
            RunError: this is not a run folder.
            DamagedFile: the configuration is not what was written.
        """
        file = self.config_file
        entry = self.manifest.get("files", {}).get(file.name)
        if not file.exists():
            if entry is not None:
                raise DamagedFile(file, "is missing", WRITE_AGAIN)
            raise RunError(f"{self.path}: not a run folder (no {file.name} there)")
        if entry is not None and written(file)["sha256"] != entry.get("before"):
            check_file(file, entry, WRITE_AGAIN)
        try:
            stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            first = str(error).splitlines()[0]
            raise DamagedFile(file, f"is damaged (no YAML: {first})", WRITE_AGAIN) from error
        if not isinstance(stored, dict):
            raise DamagedFile(file, "is damaged (it holds no options)", WRITE_AGAIN)
        return stored

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder. Only the main process of this run locks it.

        Raises:
            RunError: another process works on it.
        """
        if not is_main():
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_file(self.path))
        try:
            lock.acquire(timeout=LOCK_WAIT)
        except Timeout:
            raise RunError(f"{self.path}: another process is working on this run") from None
        try:
            yield
        finally:
            lock.release()


def working_folder(run: RunFolder) -> dict[str, str]:
    """The current folder, as a run's manifest keeps it: its path, and its place as seen from the run."""
    return {"path": str(Path.cwd()), "from_run": os.path.relpath(Path.cwd(), run.path.resolve())}


def settings(config: Config) -> dict[str, Any]:
    """The options that determine a run's result, as nested plain data."""
    chosen = config.model_dump(mode="json", exclude=IGNORED_OPTIONS)
    chosen["trainer"] = {key: value for key, value in chosen["trainer"].items() if key not in IGNORED_TRAINER_OPTIONS}
    chosen["trainer"]["adapter_dtype"] = adapter_dtype(config)  # ``speed`` may have decided it
    extra = {name: value for name, value in chosen["trainer"].pop("extra").items() if name not in OF_TRACKERS}
    if extra:
        chosen["trainer"]["extra"] = extra
    if chosen["trainer"]["learning_rate"] is not None:
        chosen["method"].pop("learning_rate")  # it has no effect
    for how in ("attention", "shard"):
        chosen["model"].pop(how)
    gradient = chosen.pop("gradient")
    method = method_of(config)
    if method.initializes_from_rows:
        chosen["gradient"] = {name: gradient[name] for name in ("samples", "micro_batch_size")}
    if method.needs_gradient:
        chosen["gradient"] = {key: value for key, value in gradient.items() if key not in IGNORED_GRADIENT_OPTIONS}
    return chosen


def run_name(config: Config) -> str:
    """``name``, or one made of recipe, method, rank (where it has an effect) and a hash of the settings: the same
    command, the same folder."""
    if config.name:
        return config.name
    subject = config.recipe or Path(config.model.path).name.replace(":", "-")  # of bundled:X, which name= refuses
    rank = f"-r{config.rank}" if method_of(config).output.size and "rank" in config.shared_uses else ""
    return f"{subject}-{config.method.name}{rank}-{sha256_json(settings(config))[:6]}"


def find_run(config: Config) -> RunFolder:
    return RunFolder(resolve_path(config.output_dir) / run_name(config))


def check_run_folder(config: Config, run: RunFolder) -> None:
    """Checks that a run folder is new or belongs to this configuration, whose earlier files are kept.

    With ``overwrite``, any run in the folder is renamed first.

    Raises:
        RunError: the folder holds a run with other settings, or of an earlier version.
    """
    ours, theirs = settings(config), _stored_settings(config, run)
    if theirs is not None and not config.overwrite:
        require_format(run)
    if theirs is not None and (config.overwrite or theirs != ours):
        if not config.overwrite:
            changed = _differences(theirs, ours)
            if run.finished and all(text.startswith(LENGTHS) for text in changed):
                raise RunError(
                    f"{run.path} has finished, and a finished run cannot go on to more steps ({'; '.join(changed)}), "
                    "because its learning rate has come to its end. To train its result further, merge it (loraga "
                    f"merge {run.path} --output DIR) and give model.path=DIR and another name=; to train anew, give "
                    "another name=, or overwrite=true, which renames the old folder"
                )
            raise RunError(
                f"{run.path} holds a run with other settings ({'; '.join(changed[:3])}): give another name=, or "
                "overwrite=true, which renames the old folder"
            )
        set_aside(run.path, "old")


def _stored_settings(config: Config, run: RunFolder) -> Any:
    """The settings of the run in a folder; None if there is none. Where it is to be set aside, a damaged manifest does
    not matter."""
    try:
        run.require_manifest()
        return run.manifest.get("settings")
    except DamagedFile:
        if config.overwrite:
            return "damaged"
        raise


def with_stored_rows(config: Config, run: RunFolder) -> Config:
    """The configuration with what the run found in its rows when it began, such as their format."""
    manifest = run.manifest
    known = run.config_file.exists() or run.config_file.name in manifest.get("files", {})
    if manifest.get("settings") != settings(config) or not known:
        return config
    try:
        dataset = DatasetConfig.model_validate(run.read_config()["dataset"])
    except DamagedFile as error:
        if is_main():
            warn(f"{error.file} {error.what}: it is written again from this command")
        return config
    return config.model_copy(update={"dataset": dataset})


def require_format(run: RunFolder) -> None:
    """Refuses run folders of an earlier format.

    Raises:
        RunError: the run was made by a version whose runs this one cannot resume or score.
    """
    if run.manifest.get("format", 1) != FORMAT:
        raise RunError(
            f"{run.path} was made by an earlier version of loraga, and this version cannot resume, score or merge it. "
            f"To go on using its adapter, write it in the new form: loraga convert {run.path} --output DIR. "
            "To train again, give another name=, or overwrite=true, which renames the old folder"
        )


def _differences(theirs: Any, ours: Any, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = list(dict.fromkeys([*theirs, *ours]))
        return [
            text for key in keys for text in _differences(theirs.get(key), ours.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if theirs == ours else [f"{path} was {theirs}, is {ours}"]
