"""What two sections rule out together, each in a line that names the options.

What a method or a task rules out is in its class (`lora_ga_cli.registry.METHODS` and ``TASKS``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lora_ga_cli.config.extra import extra_problems
from lora_ga_cli.config.row_forms import form_problems, task_problems


def problems(config: Any) -> list[str]:
    """Everything in a configuration that two sections rule out together."""
    subjects = (_of_task, _of_rows, _of_trainer, _of_gradient, _of_base)
    return [problem for subject in subjects for problem in subject(config)]


def unused_shared(config: Any, uses: frozenset[str]) -> Iterator[str]:
    """Messages for options that change what an adapter is, and that the method does not use.

    Args:
        uses: the shared options that the method uses.
    """
    method = f"method {config.method.name} (method.type={config.method.type})"
    for name in ("rank_pattern", "adapter_dropout", "target_parameters"):
        if getattr(config, name) and name not in uses:
            yield f"{name} does nothing with {method}"
    if config.model.new_tokens and "new_tokens" not in uses:
        yield f"model.new_tokens: {method} does not train the rows of new tokens; method=lora and method=full do"


def dataset_problems(dataset: Any) -> list[str]:
    """Everything in the options of a data set that does not go together."""
    return [*_of_source(dataset), *form_problems(dataset)]


def mix_source_problems(source: Any) -> list[str]:
    """Everything in one source of ``dataset.mix`` that does not go together."""
    given = [name for name in ("path", "train_file") if getattr(source, name) is not None]
    if len(given) != 1:
        return [f"wants path or train_file, exactly one (given: {' and '.join(given) or 'none'})"]
    hubs = [name for name in ("subset", "revision", "data_files") if getattr(source, name) is not None]
    return [f"gives {name}, which goes with path, a data set on the hub" for name in hubs if source.path is None]


def _of_source(dataset: Any) -> Iterator[str]:
    sources = [name for name in ("path", "train_file", "mix") if getattr(dataset, name) is not None]
    if len(sources) != 1:
        given = " and ".join(sources) or "none"
        yield f"give dataset.path or dataset.train_file, exactly one, or several in dataset.mix (given: {given})"
    elif dataset.validation_split is not None and dataset.path is None:
        yield "dataset.validation_split goes with dataset.path; with dataset.train_file: validation_file"
    held_out = dataset.validation_file is not None or dataset.validation_split is not None
    if held_out and dataset.validation_fraction > 0:
        yield "dataset.validation_fraction goes without validation_file and validation_split"
    if len(sources) == 1 and dataset.path is None:
        for option in ("data_files", "streaming"):
            if getattr(dataset, option):
                yield f"dataset.{option} goes with dataset.path, a data set on the hub"
    if not dataset.shuffle and len(dataset.mix or []) > 1:
        for option in ("max_rows", "validation_fraction"):
            if getattr(dataset, option):
                yield (
                    f"dataset.{option} with dataset.shuffle=false would not take from every source of dataset.mix: "
                    "dataset.shuffle=true"
                )
    yield from _of_stream(dataset)


def _of_stream(dataset: Any) -> Iterator[str]:
    if dataset.shuffle_buffer and not dataset.streaming:
        yield "dataset.shuffle_buffer does nothing without dataset.streaming=true: all rows are shuffled"
    if dataset.streaming and dataset.validation_split is not None and dataset.max_validation_rows is None:
        yield "dataset.streaming with dataset.validation_split wants dataset.max_validation_rows, the rows to fetch"


def _of_task(config: Any) -> Iterator[str]:
    task = config.model.task
    if not form_problems(config.dataset):  # those are named by the data set's own check
        yield from task_problems(config.dataset, task)
    if task == "sequence_classification" and config.model.dtype != "float32":
        yield (
            f"model.dtype={config.model.dtype} would train the new classification head in half precision: "
            "model.dtype=float32, with trainer.precision=bf16 for speed"
        )


def _of_rows(config: Any) -> Iterator[str]:
    dataset = config.dataset
    if not dataset.streaming or dataset.max_rows is not None:
        return
    if config.trainer.max_steps is None:
        yield "dataset.streaming wants dataset.max_rows or trainer.max_steps, which say how many rows to fetch"
    elif dataset.packing:
        yield "dataset.streaming with dataset.packing wants dataset.max_rows: steps count packs, and not rows"


def _of_trainer(config: Any) -> Iterator[str]:
    trainer = config.trainer
    yield from extra_problems(trainer.extra)
    if trainer.gradient_checkpointing_every > 1 and not trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing_every does nothing without trainer.gradient_checkpointing=true"
    if trainer.gradient_checkpointing_offload and not trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing_offload does nothing without trainer.gradient_checkpointing=true"
    if trainer.adapter_dtype is not None and trainer.precision in ("bf16", "fp16"):
        yield (
            f"trainer.adapter_dtype={trainer.adapter_dtype} does nothing with trainer.precision={trainer.precision}: "
            "autocast decides the type of products"
        )
    if trainer.compile and trainer.kernels == "liger":
        yield (
            "trainer.compile=true does not go with trainer.kernels=liger: torch.compile fails to trace Liger's kernels "
            "(linkedin/Liger-Kernel#174), and fuses the same operations itself"
        )
    if trainer.chunked_loss and config.model.task != "causal_lm":
        yield f"trainer.chunked_loss=true: a model of model.task={config.model.task} has no labels for next tokens"
    best = trainer.load_best or trainer.early_stopping_patience is not None
    if best and trainer.eval_steps != trainer.save_steps:
        yield (
            "keeping the best checkpoint saves when it evaluates: give trainer.save_steps and trainer.eval_steps one "
            f"value (they are {trainer.save_steps} and {trainer.eval_steps})"
        )
    if best and not config.dataset.has_validation:
        yield (
            "trainer.load_best and trainer.early_stopping_patience need validation rows: "
            "dataset.validation_file, dataset.validation_split or dataset.validation_fraction"
        )


def _of_gradient(config: Any) -> Iterator[str]:
    if config.gradient.estimator == "exact" and config.gradient.passes > 1:
        yield "gradient.passes does nothing with gradient=exact, which needs one pass"
    if config.gradient.estimator == "sketch" and config.gradient.offload:
        yield "gradient.offload does nothing with gradient=sketch, which needs little memory"


def _of_base(config: Any) -> Iterator[str]:
    """What quantized and sharded base models rule out."""
    if config.model.double_quantization and config.model.quantization != "nf4":
        yield "model.double_quantization goes with model.quantization=nf4"
    if config.model.shard and config.model.quantization is not None:
        yield "model.shard and model.quantization do not go together: a quantized base is small, give one"
    if config.model.shard and config.model.new_tokens:
        yield "model.shard=true does not go with model.new_tokens: sharded embeddings cannot grow"
