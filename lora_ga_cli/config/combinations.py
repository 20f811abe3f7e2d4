"""Options that fit one by one and do not go together: what is wrong, each in a line that names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import Config, DatasetConfig

ROW_FORMS = {"prompt and answer": ("prompt", "answer"), "messages": ("messages",), "text and label": ("text", "label")}
"""How a row can be read, by the options that say so."""
METRIC_TASKS = {
    "exact_match": ("causal_lm", "seq2seq_lm"),
    "label_tokens": ("causal_lm", "seq2seq_lm"),
    "accuracy": ("sequence_classification",),
    "matthews_correlation": ("sequence_classification",),
    "f1": ("sequence_classification",),
}
"""The tasks that a metric can be computed for, where not all."""


def problems(config: Config) -> list[str]:
    """Everything of a whole configuration that does not go together."""
    subjects = (_of_task, _of_scoring, _of_trainer, _of_start, _of_adapter, _of_adalora, _of_gradient, _of_base)
    return [problem for subject in subjects for problem in subject(config)]


def dataset_problems(dataset: DatasetConfig) -> list[str]:
    """Everything of a data set's options that does not go together."""
    return [*_of_source(dataset), *_of_form(dataset)]


def _of_source(dataset: DatasetConfig) -> Iterator[str]:
    sources = [name for name in ("path", "train_file") if getattr(dataset, name) is not None]
    if len(sources) != 1:
        given = " and ".join(sources) or "none"
        yield f"give dataset.path or dataset.train_file, exactly one (given: {given})"
    elif dataset.validation_file is not None and dataset.train_file is None:
        yield "dataset.validation_file goes with dataset.train_file; with dataset.path: validation_split"
    elif dataset.validation_split is not None and dataset.path is None:
        yield "dataset.validation_split goes with dataset.path; with dataset.train_file: validation_file"
    held_out = dataset.validation_file is not None or dataset.validation_split is not None
    if held_out and dataset.validation_fraction > 0:
        yield "dataset.validation_fraction goes without validation_file and validation_split"


def _of_form(dataset: DatasetConfig) -> Iterator[str]:
    forms = [form for form, keys in ROW_FORMS.items() if all(getattr(dataset, key) is not None for key in keys)]
    if len(forms) != 1:
        yield (
            "say how a row is read: dataset.prompt and dataset.answer, or dataset.messages, or dataset.text and "
            f"dataset.label, exactly one (given: {', '.join(forms) or 'none'})"
        )
    if forms == ["prompt and answer"] and dataset.label is not None and dataset.label_names is None:
        names = "dataset.label_names, the words that they insert for its numbers"
        yield f"dataset.label={dataset.label} with dataset.prompt and dataset.answer wants {names}"


def _of_task(config: Config) -> Iterator[str]:
    task = config.model.task
    if (task == "sequence_classification") != (config.dataset.text is not None):
        prompts = "dataset.prompt and dataset.answer, or dataset.messages"
        wanted = "dataset.text and dataset.label" if task == "sequence_classification" else prompts
        yield f"model.task={task} wants {wanted}; the dataset has another form"
    if task == "sequence_classification" and config.model.dtype != "float32":
        yield (
            f"model.dtype={config.model.dtype} would train the new classification head in half precision: "
            "model.dtype=float32, with trainer.precision=bf16 for speed"
        )
    if task == "seq2seq_lm" and config.dataset.messages is not None:
        yield "model.task=seq2seq_lm wants dataset.prompt and dataset.answer, not dataset.messages"


def _of_scoring(config: Config) -> Iterator[str]:
    task, options = config.model.task, config.eval
    if options.task == "rows" and "label_tokens" in options.metrics and not config.dataset.label_names:
        yield "eval.metrics has label_tokens, which compares the words of dataset.label_names: name them"
    if options.samples > 1 and options.temperature == 0:
        yield (
            f"eval.samples={options.samples} with eval.temperature=0 would be the same answer {options.samples} times: "
            "eval.temperature=0.8"
        )
    for metric in options.metrics:
        if metric in METRIC_TASKS and task not in METRIC_TASKS[metric]:
            yield f"eval.metrics has {metric}, which model.task={task} cannot give"


def _of_trainer(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.batch_size % trainer.micro_batch_size:
        yield (
            f"trainer.batch_size={trainer.batch_size} is not a multiple of "
            f"trainer.micro_batch_size={trainer.micro_batch_size}"
        )
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
    if config.method.adapter == "none" and config.model.dtype == "float16":
        yield "training every weight in float16 loses small updates: model.dtype=bfloat16 or float32"


def _of_start(config: Config) -> Iterator[str]:
    method, capacity = config.method, config.gradient.capacity
    if method.start == "gradient" and capacity is not None and capacity < 2 * config.largest_rank:
        rank = f"rank={config.rank}" if config.largest_rank == config.rank else f"rank_pattern's {config.largest_rank}"
        yield f"gradient.capacity={capacity} serves ranks up to {capacity // 2}, not {rank}"
    if method.moved_start and not method.low_rank:
        yield f"method.start={method.start} starts an adapter with A and B: method.adapter=lora or dora"
    if method.moved_start and method.shift == "weights" and config.adapter_dropout > 0:
        yield "adapter_dropout goes with method.shift=adapter: it would hit only half of what cancels"


def _of_adapter(config: Config) -> Iterator[str]:
    method = config.method
    if config.rank_pattern and not method.low_rank:
        yield f"rank_pattern is of method.adapter=lora and dora, not {method.adapter}"
    if config.adapter_dropout > 0 and method.adapter not in ("lora", "dora", "adalora"):
        yield f"adapter_dropout is of method.adapter=lora, dora and adalora, not {method.adapter}"
    if method.loraplus_lr_ratio > 1 and not method.low_rank:
        yield "method.loraplus_lr_ratio is of an adapter with A and B: method.adapter=lora or dora"
    if method.loraplus_lr_ratio > 1 and config.trainer.optimizer != "adamw":
        yield "method.loraplus_lr_ratio goes with trainer.optimizer=adamw"
    if method.train != "all" and method.adapter != "none":
        yield f"method.train={method.train} chooses weights of the model: method.adapter=none"
    if method.adapter == "prefix_layer" and config.model.task != "causal_lm":
        yield "method.adapter=prefix_layer is for model.task=causal_lm; prefix_embedding takes any"
    if method.use_rslora and method.adapter == "adalora":
        yield "method.use_rslora is of method.adapter=lora and dora, not adalora"


def _of_adalora(config: Config) -> Iterator[str]:
    method, trainer = config.method, config.trainer
    if method.adapter != "adalora":
        return
    if trainer.max_steps == 1:
        yield "method.adapter=adalora moves ranks between steps: trainer.max_steps=2 or more"
    if trainer.precision == "fp16" or (trainer.precision, config.model.dtype) == ("auto", "float16"):
        yield "method.adapter=adalora measures gradients, which fp16's scaling makes infinite at times: bf16"
    if method.adalora.warmup + method.adalora.final >= 1:
        yield "method.adalora.warmup and final leave no steps between them: together they must be below 1"


def _of_gradient(config: Config) -> Iterator[str]:
    if config.gradient.estimator == "exact" and config.gradient.passes > 1:
        yield "gradient.passes is of gradient=sketch; gradient=exact needs one pass"
    if config.gradient.estimator == "sketch" and config.gradient.offload:
        yield "gradient.offload is of gradient=exact; the sketch is small"


def _of_base(config: Config) -> Iterator[str]:
    """What a base rules out whose weights stay as they are stored: quantized, or in shards."""
    if config.model.double_quantization and config.model.quantization != "nf4":
        yield "model.double_quantization goes with model.quantization=nf4"
    if config.model.quantization is not None:
        yield from _of_quantized(config)
    if config.model.shard:
        yield from _of_shards(config)


def _of_quantized(config: Config) -> Iterator[str]:
    method, given = config.method, f"model.quantization={config.model.quantization}"
    if method.adapter == "none":
        yield f"{given}: quantized weights cannot be trained; method.adapter=lora can"
    if method.adapter in ("bottleneck", "prefix_layer"):
        yield f"{given} goes with adapters of PEFT's, and {method.adapter} is not one"
    if method.shift == "weights":
        yield f"{given}: quantized weights cannot be shifted: method.shift=adapter"
    if method.start == "gradient" and config.gradient.estimator == "exact":
        yield f"{given}: quantized weights have no gradient of their own: gradient=sketch"


def _of_shards(config: Config) -> Iterator[str]:
    method = config.method
    if config.model.quantization is not None:
        yield "model.shard and model.quantization do not go together: a quantized base is small, give one"
    if method.adapter != "lora":
        yield f"model.shard is for method.adapter=lora, not {method.adapter}"
    if method.start == "pissa":
        yield "model.shard does not go with method.start=pissa, which needs whole weights"
    if method.shift == "weights":
        yield "model.shard=true: weights in shards cannot be shifted: method.shift=adapter"
    if method.start == "gradient" and config.gradient.estimator == "exact":
        yield "model.shard=true: weights in shards have no whole gradient: gradient=sketch"
