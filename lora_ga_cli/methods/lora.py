"""LoRA and DoRA as PEFT carries them, and where they start."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TargetError, suggest
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.initialization import layer_seed, random_factors, scale_factor
from lora_ga_cli.lora.offset import Start, compute_start, gradient_start
from lora_ga_cli.methods.pissa import principal_factors
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target, check_rank, new_modules, shortest_names


def lora_config(config: Config, model: PreTrainedModel, targets: Mapping[str, Target], task_type: str) -> LoraConfig:
    """PEFT's configuration of the adapter.

    Raises:
        TargetError: an entry of ``rank_pattern`` matches no target.
    """
    return LoraConfig(
        task_type=task_type,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT's annotation says int; it only divides by rank
        lora_dropout=config.adapter_dropout,
        use_rslora=config.method.use_rslora,
        use_dora=config.method.adapter == "dora",
        target_modules=shortest_names(model, targets),
        rank_pattern=ranks_of(targets, config.rank_pattern),
        fan_in_fan_out=any(target.transposed for target in targets.values()),
        modules_to_save=new_modules(model) or None,
        revision=config.model.revision,
    )


def ranks_of(targets: Mapping[str, Target], pattern: Mapping[str, int]) -> dict[str, int]:
    """The rank of every target that a name or ending in ``pattern`` matches, by full name; the longest match counts.

    Raises:
        TargetError: an entry matches no target.
    """
    ranks: dict[str, int] = {}
    for entry, rank in sorted(pattern.items(), key=lambda item: len(item[0])):
        hits = [name for name in targets if name == entry or name.endswith(f".{entry}")]
        if not hits:
            hint = suggest(entry, {name.rsplit(".", 1)[-1] for name in targets})
            raise TargetError(f"rank_pattern: {entry!r} matches no target" + (f" ({hint})" if hint else ""))
        ranks |= dict.fromkeys(hits, rank)
    return ranks


def starting_point(model: PeftModel, config: Config, artifact: GradientArtifact | None) -> Start | None:
    """Where the configured method starts the adapter; None for LoRA's own start, which PEFT has set.

    Args:
        artifact: of the same base, for a gradient start.

    Raises:
        TargetError, GradientError
    """
    return STARTS[config.method.start](model, config, artifact)


def _of_gradient(model: PeftModel, config: Config, artifact: GradientArtifact | None) -> Start:
    method = config.method
    assert artifact is not None
    return gradient_start(
        model,
        artifact,
        direction=method.direction,
        scale=method.scale,
        gamma=method.gamma,
        shift=config.shift,
        seed=config.seed,
    )


def _of_weights(model: PeftModel, config: Config, artifact: GradientArtifact | None) -> Start:
    def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
        check_rank({name: target.shape}, rank, rank)
        return principal_factors(dense(target), rank, scaling)

    return compute_start(model, pair, shift=config.shift)


def _random(model: PeftModel, config: Config, artifact: GradientArtifact | None) -> Start:
    method = config.method

    def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
        weight = dense(target) if method.scale == "weight_svd" else None
        factor = scale_factor(
            method.scale, d_out=target.shape[0], scaling=scaling, gamma=method.gamma, rank=rank, weight=weight
        )
        return random_factors(target.shape, rank, factor=factor, seed=layer_seed(config.seed, name))

    return compute_start(model, pair, shift=config.shift)


def _at_zero(model: PeftModel, config: Config, artifact: GradientArtifact | None) -> None:
    return None


STARTS: dict[str, Callable[[PeftModel, Config, GradientArtifact | None], Start | None]] = {
    "kaiming": _at_zero,
    "gaussian": _random,
    "pissa": _of_weights,
    "gradient": _of_gradient,
}
"""By `MethodConfig.start`."""
