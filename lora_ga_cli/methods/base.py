"""What the configuration asks of a method."""

from __future__ import annotations

from collections.abc import Iterator

from lora_ga_cli.config.schema import Config, MethodConfig
from lora_ga_cli.registry import METHODS


@METHODS.register("flat")
class Flat:
    """All methods in one class; each gets a class of its own."""

    Options = MethodConfig
    uses = frozenset({"rank", "alpha", "target_modules", "rank_pattern", "adapter_dropout"})

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        """What does not go together with the method's options."""
        for rules in (_of_start, _of_adapter, _of_adalora):
            yield from rules(config)
        if config.model.quantization is not None:
            yield from _of_quantized(config)
        if config.model.shard:
            yield from _of_shards(config)


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
    if method.adapter == "none" and config.model.dtype == "float16":
        yield "training every weight in float16 loses small updates: model.dtype=bfloat16 or float32"
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
    if method.adapter != "lora":
        yield f"model.shard is for method.adapter=lora, not {method.adapter}"
    if method.start == "pissa":
        yield "model.shard does not go with method.start=pissa, which needs whole weights"
    if method.shift == "weights":
        yield "model.shard=true: weights in shards cannot be shifted: method.shift=adapter"
    if method.start == "gradient" and config.gradient.estimator == "exact":
        yield "model.shard=true: weights in shards have no whole gradient: gradient=sketch"
