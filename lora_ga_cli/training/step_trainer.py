"""transformers' Trainer, changed in what an optimizer step is: passes of any number, whose losses are averaged over all
their items together. A loss or a gradient that is not finite ends the training before the step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from lora_ga_cli.interruption import requested
from lora_ga_cli.model.losses import count_labels
from lora_ga_cli.model.speed import speed_of
from lora_ga_cli.report.console import warn
from lora_ga_cli.training.batches import BatchReader, MicroBatch, StepSampler, batch_loader
from lora_ga_cli.training.checkpoint_trainer import CheckpointTrainer
from lora_ga_cli.training.order import Order
from lora_ga_cli.training.passes import Limits
from lora_ga_cli.training.shared_signal import SharedSignal

SHARE = "loraga_share"
"""The name under which a micro-batch's share of the step's loss goes through the Trainer."""


class StepTrainer(CheckpointTrainer):
    """A Trainer that plans the passes of each optimizer step, and weighs every item of a step alike.

    Args:
        order: the rows of every step.
        limits: what fits into one forward and backward pass. The collator goes with it: it flattens rows or pads them.
    """

    def __init__(self, *, order: Order, limits: Limits, **options: Any):
        super().__init__(**options)
        self.order, self.limits = order, limits
        self.model_accepts_loss_kwargs = True  # `compute_loss` divides by the number of items, so the Trainer must not
        method = self.method
        decoder = method.config.model.task != "seq2seq_lm" and not method.leading_positions
        self._count = functools.partial(count_labels, predicts_next=decoder)
        self._ahead: list[MicroBatch] | None = None  # the next step of the epoch, if it is read already
        self._steps: Iterator[Any] = iter(())
        self._in_training_mode = False
        self._signal = SharedSignal(self.args.world_size)
        self.tokens_seen = 0
        """Tokens without padding that this process has trained on in this session."""

    @property
    def _trained(self) -> list[nn.Parameter]:
        """The parameters that train; the model itself would be searched for them."""
        assert self.optimizer is not None
        return [item for group in self.optimizer.param_groups for item in group["params"]]

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
        items, self._signal.count = self.accelerator.reduce(counts, reduction="sum")
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
                self._signal.announce()
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
        if self._signal.count is not None:
            checks.append(self._signal.count == 0)  # read together: whether all processes stop after this step
        loss_is_finite, norm_is_finite, *goes_on = torch.stack(checks).tolist()
        self._signal.agreed = goes_on == [False]
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
