"""transformers' Trainer as loraga trains a run with it. What differs between methods it asks the method."""

from __future__ import annotations

import itertools
import math
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lora_ga_cli import distributed
from lora_ga_cli.interruption import Interruption, requested
from lora_ga_cli.model.losses import summed_loss
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.training.learning_rate import rising_share, warmup_steps
from lora_ga_cli.training.passes import in_order
from lora_ga_cli.training.step_trainer import StepTrainer


class _EvaluationStopped(Exception):
    """A signal came while the validation loss was computed. It is computed again when the run is resumed."""


class LoragaTrainer(StepTrainer):
    """The Trainer of a run: with the method's optimizer, the link's part of the schedule, the mean loss of all
    validation rows, and an end with a checkpoint after a signal."""

    _looked_at = -1
    """The last step after which it was decided whether to log, evaluate and save."""

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """The configured optimizer, with the Trainer's groups of parameters, as the method changes them."""
        if self.optimizer is not None:
            return self.optimizer
        adamw = self.method.optimizer(self._model, super().create_optimizer(model))
        self.optimizer = optimizer_of(self.method.config).build(adamw, self._model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's schedule. If all links share the schedule of the run, a link gets its part of it, and a warm-up
        at its beginning."""
        link = self.link
        if link.count == 1 or not self.method.continues_schedule:
            return super().create_scheduler(num_training_steps, optimizer)
        optimizer = optimizer if optimizer is not None else self.optimizer
        of_run: Any = super().create_scheduler(link.total_steps, optimizer)
        default = warmup_steps(self.method.config, link.steps)
        share = rising_share(self.method.link_warmup, default) if link.index else None

        def part(factor: Any) -> Any:
            return lambda step: factor(link.first_step + step) * (share(step) if share else 1.0)

        self.lr_scheduler = LambdaLR(optimizer, [part(factor) for factor in of_run.lr_lambdas])
        return self.lr_scheduler

    @property
    def _at_end_of_link(self) -> bool:
        """Whether a link of a chain has done its last step. Its result is written then, so it needs no checkpoint."""
        return self.link.count > 1 and self.state.global_step >= self.state.max_steps

    @property
    def _stops(self) -> bool:
        """Whether a signal stops this training here: the same in every process."""
        return self._signal.stops and not self._at_end_of_link

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: nn.Module, trial: Any, *rest: Any, **options: Any
    ) -> None:
        """Logs, evaluates and saves as the Trainer does. After a signal it logs and saves, and stops the training.

        An evaluation that is due then is left for the session that resumes the checkpoint: `control`, which is part of
        the checkpoint, says so.
        """
        again, self._looked_at = self._looked_at == self.state.global_step, self.state.global_step
        arguments = (tr_loss, grad_norm, model, trial, *rest)
        if not self._stops:
            try:
                super()._maybe_log_save_evaluate(*arguments, **options)
                return
            except _EvaluationStopped:
                self._signal.agreed = True
        else:
            due = self.control.should_evaluate, self.control.should_save
            self.control.should_evaluate = self.control.should_save = False
            super()._maybe_log_save_evaluate(*arguments, **options)
            self.control.should_evaluate, self.control.should_save = due
        ends_epoch = self.state.global_step % self.order.steps_per_epoch == 0 if self.link.count == 1 else False
        if (ends_epoch or self.control.should_training_stop) and not again:
            return  # the Trainer calls this again after the end of the epoch, which may ask for more
        self._save_checkpoint(model, trial)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        distributed.wait()  # the first process that ends would end the others
        raise self._interruption(self._checkpoint(self.state.global_step))

    def _interruption(self, checkpoint: Path) -> Interruption:
        step, total = self.link.first_step + self.state.global_step, self.link.total_steps
        number = requested() or signal.SIGTERM  # of another process
        return Interruption(number, f"stopped after step {step} of {total}, with the checkpoint {checkpoint}")

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """One epoch. The first one of a resumed training begins with what the checkpoint left to do."""
        checkpoint = options["resume_from_checkpoint"]
        if checkpoint is not None and options["epoch"] == options["epochs_trained"]:
            self._take_up(Path(checkpoint), options)
            if self.control.should_training_stop:
                return
        super()._run_epoch(*arguments, **options)

    def _take_up(self, checkpoint: Path, options: dict[str, Any]) -> None:
        """Restores the losses that were not logged, and computes the validation loss if a signal left it undone."""
        self._restore_losses(checkpoint)
        if not self.control.should_evaluate:
            return
        # the checkpoint is written again here, with the state of the random numbers that it has
        self._load_rng_state(str(checkpoint))
        self.control.should_save = True  # or the evaluation would be logged twice if this session is stopped too
        again = {name: options[name] for name in ("model", "trial", "epoch", "ignore_keys_for_eval", "start_time")}
        try:
            super()._maybe_log_save_evaluate(self._tr_loss, None, **again)
        except _EvaluationStopped:
            distributed.wait()
            raise self._interruption(checkpoint) from None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean loss over all items of the validation rows; `loraga eval` gives the same, up to autocast's rounding.

        (The Trainer would average batches, so that the value depends on how rows are batched.)
        """
        rows: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        # every row in exactly one process; the Trainer's loader would repeat some to fill the last batch
        passes = in_order(range(len(rows)), rows["length"][:], self.limits)
        loader = self._loader(rows, [[chosen] for chosen in passes[self.args.process_index :: self.args.world_size]])
        # processes that share a base must compute as many batches each
        may_stop = self.is_in_train and not self._at_end_of_link and not self.method.config.model.shard
        stopped = False

        def goes_on(_: Any) -> bool:
            nonlocal stopped
            stopped = may_stop and requested() is not None
            return not stopped

        batches = (self._prepare_inputs(batch.inputs) for (batch,) in itertools.takewhile(goes_on, loader))
        total, items = summed_loss(self._model, batches)
        self._pad_collectives(rows, math.ceil(len(passes) / self.args.world_size) - len(loader))
        dtype = torch.float64 if self.args.device.type != "mps" else torch.float32
        sums = torch.tensor([total, items, stopped], dtype=dtype)
        sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum")
        if sums[2]:
            raise _EvaluationStopped
        loss = float(sums[0] / sums[1])
        if not math.isfinite(loss):
            self._stop(f"the validation loss is {loss} after step {self.state.global_step}, so training stopped")
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _pad_collectives(self, rows: Any, times: int) -> None:
        """Computes more batches, whose results are dropped, so that this process takes part in as many gatherings of a
        sharded base as the others."""
        for _ in range(times):
            self._model(**self._prepare_inputs(self.data_collator([rows[0]])))
