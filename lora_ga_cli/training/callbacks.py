"""Callbacks of the Trainer: they store metrics, show progress, and count the steps of a chain."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_ga_cli.config.schema import TrainerConfig
from lora_ga_cli.methods.base import Link
from lora_ga_cli.report.progress import Point, TrainingDisplay, memory
from lora_ga_cli.training import metrics
from lora_ga_cli.training.optimizer_state import OptimizerState, install_state

if TYPE_CHECKING:
    from lora_ga_cli.training.trainer import LoragaTrainer


class Recorder(TrainerCallback):
    """Writes every logged point to the metrics file, with the time (seconds since the epoch), and shows it.

    Args:
        file: the metrics file (JSON lines).
        display: shows the points.
        link: the part of the run that is recorded; steps are counted over the complete run.
    """

    def __init__(self, file: Path, display: TrainingDisplay, link: Link):
        self.file, self.display, self.link = file, display, link
        self.trainer: LoragaTrainer | None = None
        self._tokens = 0
        self._time = 0.0
        self._rate = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._time = time.perf_counter()
        if state.is_world_process_zero:
            losses = [point["loss"] for point in metrics.read(self.file) if "loss" in point]
            self.display.start(total=self.link.total_steps, done=self._step(state), losses=losses)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.display.advance(self._step(state))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        point: dict[str, Any] = {"step": self._step(state), "epoch": round(state.epoch or 0.0, 4), **logs}
        if self.link.count > 1:
            point["link"] = self.link.index
        if "loss" in logs:
            self._measure()
            point |= {"tokens_per_second": round(self._rate, 1), "memory_bytes": int(memory())}
        point["time"] = round(time.time(), 1)
        metrics.append(self.file, point)
        self.display.show(
            Point(self._step(state), logs.get("loss"), logs.get("eval_loss"), logs.get("learning_rate"), self._rate)
        )

    def _step(self, state: TrainerState) -> int:
        return self.link.first_step + state.global_step

    def _measure(self) -> None:
        assert self.trainer is not None
        now, tokens = time.perf_counter(), self.trainer.tokens_seen
        self._rate = (tokens - self._tokens) / max(now - self._time, 1e-9)
        self._time, self._tokens = now, tokens

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.display.stop()


class StepsOfRun(TrainerCallback):
    """Logs and evaluates a link of a chain at steps of the complete run, and keeps no checkpoint of its end.

    The end of a link is logged too, and what is saved there is the link itself. (The Trainer counts each link's steps
    from zero, so that short links would be evaluated at each of their ends, and never logged in between.)

    Args:
        steps_per_epoch: for evaluations after each epoch.
    """

    def __init__(self, link: Link, options: TrainerConfig, steps_per_epoch: int):
        self.link, self.options = link, options
        self.evaluate_every = options.eval_steps or steps_per_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, at_end = self.link.first_step + state.global_step, state.global_step >= self.link.steps
        short = self.link.steps < self.options.logging_steps
        control.should_log = at_end or step == 1 or (step % self.options.logging_steps == 0 and not short)
        control.should_evaluate = args.eval_strategy != "no" and step % self.evaluate_every == 0
        control.should_save = control.should_save and not at_end

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_evaluate = control.should_save = False


class LastSteps(TrainerCallback):
    """Logs the training loss of the last steps too, whatever ``logging_steps`` is, and wherever the validation loss is
    computed, since training may stop there.

    What is logged at the end is the mean over the last tenth of the steps, of at most ``logging_steps``: in a short run
    the loss falls so fast that a mean over more steps would tell little about its end. (A chain logs the end of each
    link, which may have few steps.)

    Args:
        link: the part of the run that is trained.
    """

    def __init__(self, link: Link):
        self.link = link

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        last = min(int(args.logging_steps), max(state.max_steps // 10, 1)) if self.link.count == 1 else 0
        if control.should_evaluate or state.global_step in (state.max_steps - last, state.max_steps):
            control.should_log = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_evaluate:
            control.should_log = True


class BeginsWith(TrainerCallback):
    """Gives a new optimizer the state that it begins with. In a training that is resumed, it has a state already.

    (This is after accelerate has wrapped the optimizer, which would move its counts of steps to the accelerator, where
    every step would wait for them.)

    Args:
        model: the model that trains.
        state: as `load_state` returns it.
    """

    def __init__(self, model: nn.Module, state: OptimizerState):
        self.model, self.state = model, state

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> None:
        if state.global_step == 0:
            install_state(optimizer, self.model, self.state)
