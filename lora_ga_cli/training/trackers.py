"""``trainer.report_to``: what services of experiment tracking get, through transformers' own callbacks."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)

from lora_ga_cli.config.schema import Config
from lora_ga_cli.distributed import is_main
from lora_ga_cli.errors import Fault, InvalidInput, TrainingError
from lora_ga_cli.methods.base import Link
from lora_ga_cli.report.console import warn
from lora_ga_cli.training.run_folder import RunFolder

TURNED_OFF = {"mlflow": "DISABLE_MLFLOW_INTEGRATION"}
"""Environment variables with which transformers does without a service."""
EVENTS_FOLDER = "tensorboard"
"""The folder of a run that holds TensorBoard's event files, unless ``TENSORBOARD_LOGGING_DIR`` names another one."""


def check_trackers(config: Config) -> None:
    """Refuses services whose package is not installed, before anything is loaded.

    Raises:
        InvalidInput: names all of them.
    """
    missing = [name for name in config.trainer.report_to if name not in get_available_reporting_integrations()]
    if missing:
        raise InvalidInput([_missing(name) for name in missing])


def _missing(name: str) -> Fault:
    what, variable = f"trainer.report_to={name}", TURNED_OFF.get(name, "")
    if os.environ.get(variable, "").upper() == "TRUE":
        return Fault("command line", f"{what}: the variable {variable} turns it off", f"unset {variable}")
    return Fault("command line", f"{what}: the package {name} is not installed", f"pip install {name}")


class Trackers:
    """The services that follow a run. They see one training, whatever number of links it has.

    Only the main process has any. An error of a service at the beginning ends the command. Later it would cost a long
    training, so the service is left out from then on, with a warning.

    Args:
        names: those of ``trainer.report_to``.
        run: the run that they follow.
    """

    def __init__(self, names: Sequence[str], run: RunFolder):
        self.run = run
        self._callbacks: dict[str, Any] = {}
        self._begun = self._began_wandb = False
        self._last: tuple[TrainingArguments, TrainerState, TrainerControl, dict[str, Any]] | None = None
        for name in names if is_main() else ():
            with _ends_the_command(name):
                self._callbacks[name] = get_reporting_integration_callbacks([name])[0]()

    def of(self, link: Link) -> TrainerCallback:
        """The callback for the Trainer of one link."""
        return _OfLink(self, link)

    def begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, options: dict[str, Any]
    ) -> None:
        """Begins the run at the services, with the first of the links that this session trains."""
        if self._begun:
            return
        self._begun = True
        for name, callback in self._callbacks.items():
            with _ends_the_command(name):
                if name == "wandb":
                    self._began_wandb = callback._wandb.run is None
                elif name == "tensorboard" and "TENSORBOARD_LOGGING_DIR" not in os.environ:
                    callback.tb_writer = _event_writer(str(self.run.path / EVENTS_FOLDER), state.global_step)
                callback.on_train_begin(args, state, control, **options)

    def tell(
        self,
        event: str,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        options: dict[str, Any],
    ) -> None:
        """Calls one method of every callback."""
        self.begin(args, state, control, {name: value for name, value in options.items() if name != "logs"})
        self._last = args, state, control, options
        self._each(lambda name, callback: getattr(callback, event)(args, state, control, **options))

    def end(self, *, failed: bool = False) -> None:
        """Ends the run at the services. It is called again without effect.

        Args:
            failed: training did not come to its end.
        """

        def end_one(name: str, callback: Any) -> None:
            if failed and name == "mlflow" and callback._auto_end_run:
                callback._ml_flow.end_run("FAILED")
            if self._last is not None and not (failed and name == "wandb"):  # it may upload the trained model
                args, state, control, options = self._last
                options.pop("logs", None)
                callback.on_train_end(args, state, control, **options)
            if name == "wandb" and self._began_wandb:  # or the next run of a sweep would be a part of this one
                callback._wandb.finish(exit_code=int(failed))

        self._each(end_one)
        self._callbacks, self._last = {}, None

    def _each(self, call: Callable[[str, Any], None]) -> None:
        for name, callback in list(self._callbacks.items()):
            try:
                call(name, callback)
            except Exception as error:
                del self._callbacks[name]
                warn(f"trainer.report_to={name} failed, and gets nothing more of this run: {_first_line(error)}")


class _OfLink(TrainerCallback):
    """Tells the services what happens in one link, with the steps of the complete run."""

    def __init__(self, trackers: Trackers, link: Link):
        self.trackers, self.link = trackers, link

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.trackers.begin(args, self._of_run(state), control, options)

    def on_log(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        logs = options.get("logs") or {}
        if "train_runtime" not in logs or self.link.count == 1:  # of a link, it says nothing about the run
            self.trackers.tell("on_log", args, self._of_run(state), control, options)

    def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.trackers.tell("on_save", args, state, control, options)  # checkpoints are named by the link's own steps

    def _of_run(self, state: TrainerState) -> TrainerState:
        shifted = copy.copy(state)
        shifted.global_step, shifted.max_steps = self.link.first_step + state.global_step, self.link.total_steps
        return shifted


def _event_writer(folder: str, done: int) -> Any:
    """TensorBoard's writer. It withdraws what an interrupted session wrote after its last checkpoint.

    Args:
        done: the steps before the first one that it writes.
    """
    package = "torch.utils.tensorboard" if find_spec("tensorboard") is not None else "tensorboardX"
    return import_module(package).SummaryWriter(folder, purge_step=done + 1 if done else None)


@contextmanager
def _ends_the_command(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TrainingError(
            f"trainer.report_to={name} failed: {_first_line(error)}. The same command without it goes on from here"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
