"""``trainer.extra``: fields of transformers' TrainingArguments that are no options of loraga, checked by that class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lora_ga_cli.errors import suggest

NAME = "trainer.extra"
OPTIONS = {
    "output_dir": "output_dir",
    "per_device_train_batch_size": "trainer.batch_size, trainer.micro_batch_size and trainer.max_tokens",
    "per_device_eval_batch_size": "trainer.max_tokens",
    "gradient_accumulation_steps": "trainer.batch_size and trainer.max_tokens",
    "auto_find_batch_size": "trainer.max_tokens",
    "num_train_epochs": "trainer.epochs",
    "max_steps": "trainer.max_steps",
    "learning_rate": "trainer.learning_rate",
    "lr_scheduler_type": "trainer.lr_scheduler",
    "warmup_steps": "trainer.warmup_ratio",
    "optim": "trainer.optimizer",
    "optim_args": "trainer.optimizer_options",
    "optim_target_modules": "trainer.optimizer_options",
    "weight_decay": "trainer.weight_decay",
    "adam_beta1": "trainer.adam_beta1",
    "adam_beta2": "trainer.adam_beta2",
    "adam_epsilon": "trainer.adam_epsilon",
    "max_grad_norm": "trainer.max_grad_norm",
    "bf16": "trainer.precision=bf16",
    "fp16": "trainer.precision=fp16",
    "tf32": "trainer.tf32",
    "activation_checkpointing": "trainer.gradient_checkpointing",
    "activation_checkpointing_kwargs": "trainer.gradient_checkpointing",
    "gradient_checkpointing": "trainer.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "trainer.gradient_checkpointing",
    "torch_compile": "trainer.compile",
    "torch_compile_backend": "trainer.compile",
    "torch_compile_mode": "trainer.compile",
    "use_liger_kernel": "trainer.kernels=liger",
    "liger_kernel_config": "trainer.kernels=liger",
    "logging_strategy": "trainer.logging_steps",
    "logging_steps": "trainer.logging_steps",
    "eval_strategy": "trainer.eval_steps",
    "eval_steps": "trainer.eval_steps",
    "save_strategy": "trainer.save_steps",
    "save_steps": "trainer.save_steps",
    "save_total_limit": "trainer.save_total_limit",
    "load_best_model_at_end": "trainer.load_best",
    "metric_for_best_model": "trainer.load_best, which compares validation losses",
    "greater_is_better": "trainer.load_best, which compares validation losses",
    "dataloader_num_workers": "trainer.dataloader_workers",
    "train_sampling_strategy": "trainer.group_by_length",
    "length_column_name": "trainer.group_by_length",
    "report_to": "trainer.report_to",
    "run_name": "name",
    "seed": "seed",
    "data_seed": "seed",
    "use_cpu": "device=cpu",
    "fsdp": "model.shard",
    "fsdp_config": "model.shard",
    "deepspeed": "model.shard",
    "parallelism_config": "model.shard",
    "push_to_hub": "loraga push",
    "hub_token": "loraga push",
    "hub_private_repo": "loraga push",
    "hub_model_id": "loraga push",
    "hub_strategy": "loraga push",
    "hub_always_push": "loraga push",
    "hub_revision": "loraga push",
}
"""Fields that an option or a command of loraga stands for."""
OF_TRACKERS = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
"""Fields that say where `trainer.report_to` sends, and change no result."""
WITHOUT_EFFECT = (
    "bf16_full_eval",
    "fp16_full_eval",
    "label_smoothing_factor",
    "prediction_loss_only",
    "eval_do_concat_batches",
    "eval_use_gather_object",
    "eval_accumulation_steps",
    "include_for_metrics",
    "batch_eval_metrics",
    "label_names",
    "include_num_input_tokens_seen",
    "dataloader_drop_last",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
    "do_train",
    "do_eval",
    "do_predict",
    "disable_tqdm",
    "torch_empty_cache_steps",
    "accelerator_config",
)
"""Fields that do nothing here, since loraga computes losses, reads batches and shows progress itself."""
FIXED = (
    "logging_first_step",
    "logging_nan_inf_filter",
    "remove_unused_columns",
    "restore_callback_states_from_checkpoint",
    "ddp_broadcast_buffers",
    "save_only_model",
    "resume_from_checkpoint",
    "ignore_data_skip",
    "enable_jit_checkpoint",
    "average_tokens_across_devices",
    "use_cache",
    "local_rank",
)
"""Fields that a run of loraga depends on: what it resumes from, what it logs, and how losses are averaged."""


def extra_problems(extra: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with names and types, a line each. It imports transformers, if there is anything to check."""
    if not extra:
        return
    from transformers import TrainingArguments

    types = get_type_hints(TrainingArguments)
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    for name, value in extra.items():
        if name in OPTIONS:
            yield f"{NAME}.{name} is an option here: {OPTIONS[name]}"
        elif name in WITHOUT_EFFECT:
            yield f"{NAME}.{name} would do nothing: loraga computes losses, reads batches and shows progress itself"
        elif name in FIXED:
            yield f"{NAME}.{name} cannot be changed: a run depends on the value that loraga gives it"
        elif name not in known:
            free = [field for field in known if field not in {*OPTIONS, *WITHOUT_EFFECT, *FIXED}]
            hint = suggest(name, free)
            yield f"{NAME}.{name}: transformers' TrainingArguments have no such field" + (f" ({hint})" if hint else "")
        elif problem := _misfit(types[name], value):
            yield f"{NAME}.{name}={value!r} {problem}"


def _misfit(kind: Any, value: Any) -> str:
    """Why a value does not have a field's type; empty if it has."""
    kinds = {kind, *get_args(kind)}
    if isinstance(value, bool) and bool not in kinds:
        return f"should be {_shown(kind)}"  # to Python, true is 1
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError:
        return f"should be {_shown(kind)}"
    return ""


def _shown(kind: Any) -> str:
    parts = get_args(kind) if type(kind).__name__ in ("UnionType", "_UnionGenericAlias", "Union") else (kind,)
    return " | ".join("null" if part is type(None) else getattr(part, "__name__", str(part)) for part in parts)
