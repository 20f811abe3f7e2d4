"""transformers' Trainer, with some things changed: what a checkpoint holds, how losses are averaged in training and in
evaluation, that a loss which is not finite stops the run, that a signal stops it with a checkpoint, and that a training
which reached its last step is restored and not resumed. What differs between methods it asks the method."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import nested_gather

from lora_ga_cli import distributed
from lora_ga_cli.errors import DamagedFile, TrainingError
from lora_ga_cli.files import follow_umask, read_json, write_json
from lora_ga_cli.interruption import NAMES, Interruption, requested
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import Link, Method
from lora_ga_cli.model.losses import count_labels, summed_loss
from lora_ga_cli.model.speed import speed_of
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.report.console import warn
from lora_ga_cli.training import metrics
from lora_ga_cli.training.batches import BatchReader, MicroBatch, StepSampler, batch_loader
from lora_ga_cli.training.checkpoints import MARK, damage_of, last_complete, mark_complete
from lora_ga_cli.training.learning_rate import warmup_steps
from lora_ga_cli.training.order import Order
from lora_ga_cli.training.passes import Limits, in_order

SHARE = "loraga_share"
"""The name under which a micro-batch's share of the step's loss goes through the Trainer."""
LOSS_FILE = "loss.json"
"""A checkpoint's sum of the losses that were not logged yet, so that the next line of the log is that of a run that was
not stopped."""


class _EvaluationStopped(Exception):
    """A signal came while the validation loss was computed. It is computed again when the run is resumed."""


def rising_share(warmup: int | None, default: int) -> Callable[[int], float]:
    """The share of the run's learning rate that a link has at each of its steps.

    Args:
        warmup: steps below the full rate, which begin with ``1 / (warmup + 1)``, so that no step is without effect; or
            None.
        default: where that is None: steps of a warm-up that begins with rate 0, as the run's own does.
    """
    if warmup is not None:
        return lambda step: min(1.0, (step + 1) / (warmup + 1))
    return lambda step: min(1.0, step / default) if default else 1.0


class LoragaTrainer(Trainer):
    """A Trainer whose checkpoints hold the adapter for the original base model, and are marked when they are complete.

    Args:
        method: the fine-tuning method.
        link: the part of the run that this Trainer does.
        order: the rows of every step.
        limits: what fits into one forward and backward pass. The collator goes with it: it flattens rows or pads them.
        init: the initial factors that the method gave the model; None where it gave none.
        metrics_file: the run's metrics, of which each checkpoint keeps a digest.
    """

    def __init__(
        self,
        *,
        args: TrainingArguments,
        method: Method,
        link: Link,
        order: Order,
        limits: Limits,
        init: LoraInit | None = None,
        metrics_file: Path | None = None,
        **options: Any,
    ):
        # the Trainer refuses to save the optimizer beside a sharded base, but what trains here is complete everywhere
        save_only_model, args.save_only_model = args.save_only_model, True
        super().__init__(args=args, **options)
        self.args.save_only_model = save_only_model
        self.method, self.link, self.init, self.metrics_file = method, link, init, metrics_file
        self.order, self.limits = order, limits
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the number of items, so the Trainer must not
        decoder = method.config.model.task != "seq2seq_lm" and not method.leading_positions
        self._count = functools.partial(count_labels, predicts_next=decoder)
        self._ahead: list[MicroBatch] | None = None  # the next step of the epoch, if it is read already
        self._steps: Iterator[Any] = iter(())
        self._unwrapped: tuple[Any, Any] = (None, None)
        self._in_training_mode = False
        self._stop_count: Any = None  # how many processes had a signal when the step began, on the device
        self._stop_agreed = self._announced = False
        self._looked_at = -1
        self.tokens_seen = 0
        """Tokens without padding that this process has trained on in this session."""

    @property
    def _model(self) -> PreTrainedModel | PeftModel:
        """The model itself, without the wrappers of several processes."""
        wrapped, model = self._unwrapped
        if wrapped is not self.model:  # unwrapping visits all modules, which takes milliseconds
            model = self.accelerator.unwrap_model(self.model)
            assert isinstance(model, PreTrainedModel | PeftModel)
            self._unwrapped = self.model, model
        return model

    @property
    def _trained(self) -> list[nn.Parameter]:
        """The parameters that train; the model itself would be searched for them."""
        assert self.optimizer is not None
        return [item for group in self.optimizer.param_groups for item in group["params"]]

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

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Loads a step at a time: the list of this process's micro-batches.

        (To the Trainer this is one batch, so that it accumulates nothing: how many passes a step takes follows from the
        lengths of its rows, and differs between steps.)
        """
        config, link, order = self.method.config, self.link, self.order
        count = link.steps if link.count > 1 else order.steps_per_epoch

        def steps() -> list[list[int]]:
            if link.count > 1:
                return order.steps(link.first_step, link.steps)
            return order.epoch(self.state.global_step // count)

        sampler = StepSampler(
            steps,
            count,
            order.lengths,
            self.limits,
            processes=self.args.world_size,
            index=self.args.process_index,
            equal=config.model.shard,
        )
        self._sampler = sampler
        return self._loader(self.train_dataset, sampler)

    def _loader(self, rows: Any, sampler: Any) -> DataLoader[Any]:
        collate: Any = self.data_collator
        reader = BatchReader(rows, collate, self._count)
        return batch_loader(
            reader, sampler, workers=self.args.dataloader_num_workers, pin=self.args.device.type == "cuda"
        )

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The micro-batches of one optimizer step, and how many items they hold over all processes."""
        step = next(epoch_iterator, None) if self._ahead is None else self._ahead
        samples = [] if step is None else [step]
        self._ahead, self._steps = None, epoch_iterator
        items = sum(batch.items for step in samples for batch in step)
        if self.args.world_size == 1:
            return samples, items
        counts = torch.full((2,), items, device=device)  # filled on the device, which is not waited for
        counts[1] = int(requested() is not None)
        items, self._stop_count = self.accelerator.reduce(counts, reduction="sum")
        return samples, items

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The forward and backward passes of one optimizer step.

        Args:
            inputs: the micro-batches.
            num_items_in_batch: the items of the step, over all processes.
        """
        if not (self._in_training_mode and model.training):  # once, and after each evaluation
            model.train()
            self._in_training_mode = True
        while True:
            losses, full = self._passes(model, inputs, num_items_in_batch)
            if full is None:
                break
            inputs = self._smaller(model, inputs, full)  # outside of the handler, which holds tensors
        loss = torch.stack(losses).sum()
        self.tokens_seen += sum(batch.tokens for batch in inputs)
        self._ahead = next(self._steps, None)  # the device still computes
        self._check_finite(loss)
        return loss

    def _passes(
        self, model: nn.Module, batches: Sequence[MicroBatch], items: Any
    ) -> tuple[list[Tensor], RuntimeError | None]:
        """Runs the passes of a step. Returns their losses, and the error if memory ran out."""
        losses = []
        try:
            for number, batch in enumerate(batches):
                self._announce_stop()
                last = number + 1 == len(batches)
                with contextlib.nullcontext() if last else self._without_reduction(model):
                    losses.append(self._pass(model, batch.to(self.args.device), items))
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return [], error.with_traceback(None)
        return losses, None

    def _smaller(self, model: nn.Module, batches: Sequence[MicroBatch], error: RuntimeError) -> list[MicroBatch]:
        """The micro-batches of a step in halves, after memory ran out; later steps get smaller ones too.

        (Several processes would have to agree on it while they wait for each other in the backward pass.)
        """
        smaller = [half for batch in batches for half in batch.halves(self._count)]
        if len(smaller) == len(batches) or self.args.world_size > 1:
            raise error
        model.zero_grad()
        clear_device_cache(garbage_collection=True)
        tokens = max(batch.computed for batch in smaller)  # of one long row, perhaps more than the limit was
        tokens = min(tokens, self.limits.tokens or tokens)
        self.limits = self._sampler.limits = replace(self.limits, tokens=tokens)
        warn(
            f"the accelerator's memory is full: passes have at most {tokens:,} tokens from now on "
            f"(trainer.max_tokens={tokens} would do so from the beginning)"
        )
        return smaller

    def _pass(self, model: nn.Module, batch: MicroBatch, items: Any) -> Tensor:
        """One forward and backward pass. Returns its share of the mean loss of the step's rows."""
        inputs = batch.inputs | {SHARE: self._share(batch, items)}
        if speed_of(self._model).chunked_loss:
            inputs["num_labelled"] = batch.items or batch.inputs["labels"].numel()  # or the device would be waited for
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=items)
        self.accelerator.backward(loss)
        loss = loss.detach()
        with self.accelerator.autocast():  # in the precision in which the model added it
            penalty = self.method.penalty(self._model)
        # the penalty trains, but the reported loss is that of the rows, as with other methods
        return loss if penalty is None else loss - penalty * self._share(batch, items)

    def _share(self, batch: MicroBatch, items: Any) -> Any:
        """The weight of a micro-batch's mean loss among the ``items`` of an optimizer step."""
        # several processes average their gradients, so each counts its share as often as there are processes
        return batch.items * self.accelerator.num_processes / items

    @contextlib.contextmanager
    def _without_reduction(self, model: nn.Module) -> Iterator[None]:
        """Gradients of a pass stay in this process: those of all passes are averaged after the last one."""
        self.accelerator.gradient_state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """A micro-batch's share of the mean loss over all items of the optimizer step.

        (The Trainer leaves this to the model, and models that take the number of items and do not use it, such as T5
        and BERT, would train on a loss that grows with the number of passes.)
        """
        share = inputs.pop(SHARE)
        outputs = model(**inputs)
        loss = outputs.loss * share
        return (loss, outputs) if return_outputs else loss

    def _check_finite(self, loss: Tensor) -> None:
        """Stops before a step that would make every weight NaN. The weights are still those of the last step.

        This is the only time in a step that the process waits for the device, but for transformers' masks of rows that
        are padded or kept apart by a mask, and for fp16's loss scaler.
        """
        # fp16's gradients are scaled, and often infinite: the loss scaler skips such steps itself
        grads = [] if self.args.fp16 else [item.grad for item in self._trained if item.grad is not None]
        norm = get_total_norm(grads) if grads else loss
        checks = [loss.isfinite(), norm.isfinite()]
        if self._stop_count is not None:
            checks.append(self._stop_count == 0)  # read together: whether all processes stop after this step
        loss_is_finite, norm_is_finite, *goes_on = torch.stack(checks).tolist()
        self._stop_agreed = goes_on == [False]
        if loss_is_finite and norm_is_finite:
            return
        step = self.state.global_step + 1
        if not torch.isfinite(loss):
            self._stop(f"the loss is {float(loss)} at step {step}, so training stopped before it")
        for name, item in self._model.named_parameters():
            if item.grad is not None and not item.grad.isfinite().all():
                self._stop(f"the gradient of {name} is not finite at step {step}, so training stopped before it")

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips the norm of all gradients together, of the parameters that train."""
        return self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    @property
    def _at_end_of_link(self) -> bool:
        """Whether a link of a chain has done its last step. Its result is written then, so it needs no checkpoint."""
        return self.link.count > 1 and self.state.global_step >= self.state.max_steps

    @property
    def _stops(self) -> bool:
        """Whether a signal stops this training here: the same in every process."""
        wanted = self._stop_agreed if self.args.world_size > 1 else requested() is not None
        return wanted and not self._at_end_of_link

    def _announce_stop(self) -> None:
        signal = requested()
        if signal is not None and not self._announced:
            self._announced = True
            again = "; Ctrl-C again stops at once, without it" if NAMES[signal] == "Ctrl-C" else ""
            warn(f"{NAMES[signal]}: training stops after this step, and a checkpoint is written{again}")

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
                self._stop_agreed = True
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
        raise self._interruption(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _interruption(self, checkpoint: Path) -> Interruption:
        step, total = self.link.first_step + self.state.global_step, self.link.total_steps
        signal = requested()
        number = signal if signal is not None else next(number for number in NAMES if NAMES[number] == "SIGTERM")
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
        if (checkpoint / LOSS_FILE).exists():
            stored = read_json(checkpoint / LOSS_FILE)
            self._tr_loss.fill_(stored["sum"])
            self._globalstep_last_logged = stored["logged"]
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

    def _stop(self, why: str) -> NoReturn:
        kept = last_complete(Path(str(self.args.output_dir)))
        resume = f"; the last complete checkpoint is {kept}" if kept else ""
        raise TrainingError(
            f"{why}{resume}. A lower trainer.learning_rate often helps, and bf16 instead of fp16 in trainer.precision"
        )

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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return  # the Trainer calls this in every process when the base is sharded
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.method.save(self._model, folder, self.init, state_dict)
        for file in folder.glob("*.safetensors"):
            follow_umask(file)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # a checkpoint that is written again is not complete until it is finished
            (folder / MARK).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)
        loss = float(nested_gather(self._tr_loss, self.args.parallel_mode).mean())
        distributed.wait()  # every process writes the state of its random numbers
        if self.args.should_save and folder.is_dir():
            write_json(folder / LOSS_FILE, {"sum": loss, "logged": self._globalstep_last_logged})
            self.method.save_state(self._model, folder)
            follow_umask(folder)
            mark_complete(folder, metrics.state(self.metrics_file) if self.metrics_file is not None else None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.read_weights(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Loads them as the Trainer does.

        Raises:
            TrainingError: the checkpoint has another optimizer, with other groups of parameters.
        """
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise TrainingError(
                f"{checkpoint} cannot be resumed, its optimizer was another ({error}): overwrite=true starts the run "
                "again and sets this one aside"
            ) from error

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        # by name: the state holds a path relative to the folder where the run was started
        folder = Path(str(self.args.output_dir)) / Path(self.state.best_model_checkpoint).name
        if what := damage_of(folder):
            hint = "it held the best weights, so start the run again with overwrite=true, which renames the old folder"
            raise DamagedFile(folder, f"is damaged ({what})", hint)
        self.read_weights(folder)

    def restore_finished(self, checkpoint: Path) -> bool:
        """Restores the end of a training that reached its last step but did not write its result.

        (Resuming such a checkpoint the usual way would train one step more.)

        Returns:
            Whether ``checkpoint`` is the end of such a training.
        """
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        control = state.stateful_callbacks.get("TrainerControl", {})
        stopped = isinstance(control, dict) and control.get("args", {}).get("should_training_stop", False)
        if state.global_step < state.max_steps and not stopped:
            return False
        self.state = state
        if control.get("args", {}).get("should_evaluate", False):  # a signal left it undone
            self.read_weights(checkpoint)
            self._determine_best_metric(metrics=self.evaluate(), trial=None)
            if state.best_global_step:
                best = Path(str(self.args.output_dir)) / f"checkpoint-{state.best_global_step}"
                state.best_model_checkpoint = str(best)
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        else:
            self.read_weights(checkpoint)
        return True

    def read_weights(self, folder: Path) -> None:
        """Reads the trained weights of a checkpoint into the model."""
        if not self.method.output.is_adapter and not (folder / "model.safetensors").exists():
            super()._load_from_checkpoint(str(folder))  # in several files
            return
        self.method.restore(self._model, folder, self.init)
        self.method.restore_state(self._model, folder)
