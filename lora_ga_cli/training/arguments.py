"""Translates loraga's options into transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput
from lora_ga_cli.methods.base import Link, link_seed, method_of
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.training.learning_rate import warmup_steps

AUTOCAST = {"float32": "fp32", "bfloat16": "fp32", "float16": "fp16"}
"""What ``precision=auto`` means by ``model.dtype``. A bfloat16 base computes in bfloat16 by itself, and the adapter on
it in the type of `adapter_dtype`. float16 needs the loss scaling that comes with it."""


def precision(config: Config) -> str:
    """The autocast type (``fp32`` is none): what ``trainer.precision`` says, or what ``model.dtype`` implies."""
    chosen = config.trainer.precision
    return AUTOCAST[config.model.dtype] if chosen == "auto" else chosen


def adapter_dtype(config: Config) -> str:
    """The type of adapters' products: what ``trainer.adapter_dtype`` says, or bfloat16 on a base in bfloat16."""
    options = config.trainer
    automatic = options.speed == "auto" and config.model.dtype == "bfloat16"
    return options.adapter_dtype or ("bfloat16" if automatic else "float32")


def check_extra(config: Config) -> None:
    """Lets transformers check the values of ``trainer.extra``, before anything is computed.

    Raises:
        InvalidInput
    """
    try:
        made = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", **config.trainer.extra)
        made.get_process_log_level()  # looks the level up
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise InvalidInput([Fault("trainer.extra", str(error).strip().splitlines()[0])]) from error


def training_arguments(
    config: Config, folder: Path, device: torch.device, *, name: str, learning_rate: float, validate: bool, link: Link
) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        folder: the folder of the checkpoints.
        name: the run's name at services of experiment tracking.
        learning_rate: the largest learning rate of the run.
        validate: whether there are validation rows.
        link: the part of the run that the arguments are for.
    """
    options = config.trainer
    best = options.load_best or options.early_stopping_patience is not None
    chosen, scheduled_as_one = precision(config), method_of(config).continues_schedule
    values: dict[str, Any] = dict(
        output_dir=str(folder),
        **optimizer_of(config).arguments(),
        learning_rate=learning_rate,
        num_train_epochs=options.epochs,
        max_steps=(options.max_steps or -1) if link.count == 1 else link.steps,
        # one batch of the Trainer is the complete step, which LoragaTrainer divides over processes and passes
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=1,
        lr_scheduler_type=options.lr_scheduler,
        warmup_steps=warmup_steps(config, link.total_steps if scheduled_as_one else link.steps),
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_epsilon=options.adam_epsilon,
        max_grad_norm=options.max_grad_norm,
        bf16=chosen == "bf16",
        fp16=chosen == "fp16",
        use_cpu=device.type == "cpu",
        seed=link_seed(config.seed, link.index),  # each link has its own dropout
        logging_steps=options.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy=("steps" if options.eval_steps else "epoch") if validate else "no",
        eval_steps=options.eval_steps,
        save_strategy="steps" if options.save_steps else "epoch",
        save_steps=options.save_steps or 500,  # unused when saving by epoch
        save_total_limit=options.save_total_limit,
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        dataloader_num_workers=options.dataloader_workers,
        restore_callback_states_from_checkpoint=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",  # `Trackers` calls transformers' callbacks
        run_name=name,
        project="loraga",
        ddp_broadcast_buffers=False,  # initial factors are the same in every process
    )
    arguments = TrainingArguments(**{**values, **options.extra})
    arguments._n_gpu = 1  # one process, one device: the Trainer would split each batch over all GPUs it sees
    return arguments
