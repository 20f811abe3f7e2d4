"""What all methods share that train LoRA's factors (arXiv 2106.09685): PEFT's model, rsLoRA's scaling, DoRA's
magnitudes, LoRA+'s learning rates, and the files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TargetError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.beside import (
    Beside,
    embedding_parameters,
    find_beside,
    finish,
    saved_modules,
    trained_rows,
)
from lora_ga_cli.lora.experts import experts_of
from lora_ga_cli.lora.export import export_adapter, restore_adapter
from lora_ga_cli.lora.layers import ADAPTER, base_targets, is_b, lora_layers, lora_ranks
from lora_ga_cli.lora.offset import LoraInit, install, prepare_empty, present_factors, train_directly
from lora_ga_cli.lora.peft_targets import by_parameter, peft_names, peft_targets, without_false_warnings
from lora_ga_cli.lora.useful_rank import TrainedProduct, products
from lora_ga_cli.methods.base import (
    ANY_LINK,
    TASK_TYPES,
    AdapterOutput,
    InitData,
    Link,
    Method,
    Model,
    PreparedModel,
    link_seed,
)
from lora_ga_cli.methods.rank_allocation import (
    RankAllocation,
    RankAllocationOptions,
    allocates,
    allocation_faults,
    describe_ranks_of,
)
from lora_ga_cli.model.targets import Target, configured_ranks, find_targets, new_modules, small_layers
from lora_ga_cli.registry import OPTIMIZERS


class LoraOptions(RankAllocationOptions):
    """Options of every method that adds a pair of factors A and B to each target."""

    use_rslora: bool = False
    """Scale the adapter by ``alpha / sqrt(rank)`` instead of ``alpha / rank`` (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Also train a magnitude for every output of a target (DoRA, arXiv 2402.09353)."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """The learning rate of B divided by that of A (LoRA+, arXiv 2402.12354)."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules that train completely beside the adapter and are saved with it, by name or ending:
    ``[embed_tokens, lm_head]``. Modules that share a weight with one of them train as one with it."""
    trainable_token_indices: list[int | str] = Field(default_factory=list)
    """Tokens whose rows of the embeddings train while all other rows stay as they are: numbers, or texts that are one
    token each. Rows of an output head that is not tied to the embeddings train too. ``model.new_tokens`` need not be
    named."""


class Lora(Method):
    """The base class of every method that adds a product of low rank ``s·B A`` beside each target.

    A is (rank, d_in), B (d_out, rank). A subclass defines how they begin; here PEFT draws A, and B is zero.
    """

    trains_pairs = True
    adapts_parameters: ClassVar[bool] = True
    """Whether its layers compute no more than ``s·B A x``, which PEFT can also add to a parameter."""
    uses = frozenset(
        {"rank", "alpha", "target_modules", "target_parameters", "rank_pattern", "adapter_dropout", "new_tokens"}
    )
    gradient_vectors: ClassVar[int] = 1
    """Singular vectors of the gradient that an adapter of rank 1 begins with."""

    @property
    def needs_gradient(self) -> bool:
        return allocates(self.config)

    @property
    def largest_rank(self) -> int:
        return self.allocation.max_rank if allocates(self.config) else self.config.largest_rank

    def gradient_ranks(self, targets: Mapping[str, Target]) -> dict[str, int]:
        return dict.fromkeys(targets, 1) if allocates(self.config) else super().gradient_ranks(targets)

    @property
    def allocation(self) -> RankAllocation:
        """How the gradient decides the ranks, unless they are uniform."""
        return RankAllocation(self.config, self.gradient_vectors)

    @property
    def output(self) -> AdapterOutput:
        if self.options.use_dora:
            return AdapterOutput("a DoRA adapter", "PEFT", size="rank")
        options, new = self.options, self.config.model.new_tokens
        beside = options.modules_to_save or options.trainable_token_indices or new
        label = "trained modules and a LoRA adapter" if beside else "a standard LoRA adapter"
        return AdapterOutput(label, "PEFT", vllm=not beside, size="rank")

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        options: Any = config.method
        if options.loraplus_lr_ratio > 1 and config.trainer.optimizer != "adamw":
            yield "method.loraplus_lr_ratio goes with trainer.optimizer=adamw"
        if options.use_dora and config.model.shard:
            yield "model.shard=true does not go with method.use_dora=true"
        if config.target_parameters and (obstacle := cls.expert_obstacle(config)):
            given = ",".join(config.target_parameters)
            yield f"target_parameters=[{given}]: {obstacle}; target_parameters=[] leaves experts out"
        if config.model.shard and (options.modules_to_save or options.trainable_token_indices):
            yield "model.shard=true does not go with method.modules_to_save and method.trainable_token_indices"
        method = cls(config)
        yield from allocation_faults(config, method.largest_rank)
        if method.needs_gradient:
            yield from gradient_faults(config, method.largest_rank, cls.gradient_vectors)

    @classmethod
    def expert_obstacle(cls, config: Config) -> str:
        options: Any = config.method
        if obstacle := super().expert_obstacle(config) or parameter_obstacle(config):
            return obstacle
        if allocates(config):
            return f"method.rank_allocation={options.rank_allocation} ranks linear layers alone"
        if getattr(OPTIMIZERS.find(config.trainer.optimizer), "steps_pairs", False):
            return f"trainer.optimizer={config.trainer.optimizer} steps one A and one B of a linear layer"
        if config.model.shard:
            return "model.shard=true divides their weights"
        if config.trainer.compile:
            return "PEFT changes their modules in every pass, for which trainer.compile=true would compile them again"
        return ""

    def targets(self, model: nn.Module) -> dict[str, Target]:
        left_out = self.left_out(model)
        return {name: target for name, target in super().targets(model).items() if name not in left_out}

    def left_out(self, model: nn.Module) -> dict[str, str]:
        found, obstacle = super().left_out(model), self.parameter_obstacle
        if obstacle and not self.names_targets:
            linear = find_targets(model, self.config.target_modules)
            why = f"PEFT takes this name for that of experts, so that it is adapted as a parameter, and {obstacle}"
            found |= dict.fromkeys(by_parameter(model, linear), why)
        return found

    @property
    def parameter_obstacle(self) -> str:
        """Why linear layers cannot be adapted as parameters, in a few words; empty if they can."""
        if not self.adapts_parameters:
            return f"method {self.config.method.name} does more than PEFT does for parameters"
        return parameter_obstacle(self.config)

    def source(self, model: PreTrainedModel, targets: Mapping[str, Target], data: InitData) -> Any:
        """What ranks and initial factors are computed from, of the model before it has an adapter; None for nothing.

        Here it is the gradient (a `GradientArtifact`), if the method needs one.

        Raises:
            TargetError, GradientError
        """
        return data.gradient() if self.needs_gradient else None

    def layer_ranks(self, targets: Mapping[str, Target], link: Link, source: Any = None) -> dict[str, int]:
        """The rank of every layer that gets an adapter, by full name.

        Args:
            targets: the layers that ``target_modules`` names.
            source: what `source` returned; None if it was not computed (for forecasts).

        Raises:
            TargetError: an entry of ``rank_pattern`` matches no target, or a budget pays for no layer.
            GradientError: the gradient decides the ranks, and a layer has none.
        """
        if allocates(self.config):
            allocation = self.allocation
            return allocation.expected_ranks(targets) if source is None else allocation.ranks(targets, source)
        return configured_ranks(targets, self.config.rank, self.config.rank_pattern)

    def frozen(self, link: Link) -> str | None:
        """The factor that does not train in a link: ``A``, ``B`` or None."""
        return None

    def prepare(self, model: PreTrainedModel, *, link: Link, data: InitData, stored: LoraInit | None) -> PreparedModel:
        targets = self.targets(model)
        source = self.source(model, targets, data) if stored is None else None
        ranks = self.layer_ranks(targets, link, source) if stored is None else stored.ranks
        # what is drawn is the same, whatever was drawn before, and another draw for each link
        torch.manual_seed(link_seed(self.config.seed, link.index))
        wrapped = self.wrap(model, {name: targets[name] for name in ranks}, ranks, link)
        init = stored if stored is not None else self.initialize(wrapped, link, source, data)
        if init is None and allocates(self.config):
            init = present_factors(wrapped)  # a resumed run finds the ranks in it
        installed = None if init is None else install(wrapped, init)
        train_directly(wrapped)
        return PreparedModel(wrapped, installed)

    def initialize(self, model: PeftModel, link: Link, source: Any, data: InitData) -> LoraInit | None:
        """The initial factors of all layers; None leaves those that PEFT gave the model. The model is not changed.

        Args:
            source: what `source` returned.

        Raises:
            TargetError, GradientError
        """
        return None

    def without_directions(self, model: PeftModel, source: GradientArtifact) -> dict[str, str]:
        """The layers for which the gradient has too few directions, or none; they begin as LoRA does."""
        return without_directions(model, source, vectors=self.gradient_vectors, named=self.names_targets)

    def alphas(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """The alpha of layers where it is not ``alpha``, by full name."""
        return {}

    def check_model(self, empty: Callable[[], PreTrainedModel]) -> None:
        options, config = self.options, self.config
        beside = options.modules_to_save or options.trainable_token_indices or config.model.new_tokens
        if beside or config.target_parameters:
            self.attach_empty(empty())

    def beside(self, model: PreTrainedModel, targets: Collection[str]) -> Beside:
        """What trains beside the factors.

        Args:
            targets: the layers that get factors, by full name.

        Raises:
            TargetError: as `find_beside`.
        """
        options = self.options
        return find_beside(
            model,
            options.modules_to_save,
            options.trainable_token_indices,
            new=new_modules(model),
            targets=targets,
        )

    def attach(self, model: PreTrainedModel, link: Link) -> PeftModel:
        targets = self.targets(model)
        ranks = self.layer_ranks(targets, link)
        return self.wrap(model, {name: targets[name] for name in ranks}, ranks, link)

    def attach_empty(self, model: PreTrainedModel, link: Link = ANY_LINK) -> nn.Module:
        wrapped = super().attach_empty(model, link)
        assert isinstance(wrapped, PeftModel)
        train_directly(wrapped)
        prepare_empty(wrapped)
        return wrapped

    def wrap(
        self, model: PreTrainedModel, targets: Mapping[str, Target], ranks: Mapping[str, int], link: Link
    ) -> PeftModel:
        """PEFT's model with an adapter of these ranks on these targets, initialized as PEFT does.

        Raises:
            TargetError: DoRA cannot read a target's weight; PEFT can adapt it only as a parameter, which the method
                cannot; or as `beside`.
        """
        config, names, beside = self.config, peft_names(model, targets), self.beside(model, targets)
        if self.options.use_dora:
            refuse_int8_on_cpu(targets)
        self._refuse_parameters(by_parameter(model, targets), type(model).__name__)
        described = LoraConfig(
            task_type=TASK_TYPES[config.model.task],
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT's annotation says int; it only divides by rank
            lora_dropout=config.adapter_dropout,
            use_rslora=self.options.use_rslora,
            use_dora=self.options.use_dora,
            **peft_targets(model, targets),
            rank_pattern={names[name]: rank for name, rank in ranks.items() if rank != config.rank},
            alpha_pattern={names[name]: alpha for name, alpha in self.alphas(ranks).items()},
            fan_in_fan_out=any(target.is_module and target.transposed for target in targets.values()),
            revision=config.model.revision,
            **beside.arguments(model),
        )
        wrapped = wrap(model, described)
        finish(wrapped, beside)
        return wrapped

    def _refuse_parameters(self, targets: Mapping[str, Target], model_class: str) -> None:
        """Refuses linear layers that PEFT adapts as parameters, where the method needs more than PEFT does for those.

        Raises:
            TargetError
        """
        obstacle = self.parameter_obstacle
        names = sorted({name.rsplit(".", 1)[-1] for name, target in targets.items() if target.is_module})
        if names and obstacle:
            raise TargetError(
                f"in {model_class}, PEFT adapts {', '.join(names)} as parameters, which does not go with this method: "
                f"{obstacle}; name other layers in target_modules"
            )

    def optimizer(self, model: Model, optimizer: Optimizer) -> Optimizer:
        """LoRA+ (arXiv 2402.12354): a separate learning rate for B.

        (PEFT's LoRA+ gives that rate to all vectors too: DoRA's magnitudes and the biases of a new classifier head.)

        Embeddings have no weight decay: with it, the rows of tokens that no batch contains would shrink.
        """
        without_decay(optimizer, embedding_parameters(model))
        ratio = self.options.loraplus_lr_ratio
        if ratio == 1:
            return optimizer
        factors_b = {id(item) for name, item in model.named_parameters() if is_b(name)}
        for group in list(optimizer.param_groups):
            apart = [item for item in group["params"] if id(item) in factors_b]
            group["params"] = [item for item in group["params"] if id(item) not in factors_b]
            if apart:
                optimizer.add_param_group({**group, "params": apart, "lr": group["lr"] * ratio})
        return optimizer

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        assert isinstance(model, PeftModel)
        export_adapter(model, folder, init)

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        assert isinstance(model, PeftModel)
        restore_adapter(model, folder, init)

    def built_size(self, model: nn.Module) -> list[int]:
        return lora_ranks(model)

    def products(self, model: nn.Module) -> dict[str, TrainedProduct]:
        return products(model)

    def describe(self, model: nn.Module) -> str:
        assert isinstance(model, PeftModel)
        layers = lora_layers(model)
        ranks = {name: layer.r[ADAPTER] for name, layer in layers.items()}
        experts = sum(map(experts_of, layers.values()))
        plain = len([layer for layer in layers.values() if not experts_of(layer)])
        counts = [f"{plain} layers"] if plain or not experts else []
        counts += [f"{experts} layers of experts"] if experts else []
        parts = [f"{describe_ranks_of(ranks)}, {' and '.join(counts)}"]
        parts += [f"with {', '.join(saved)}"] if (saved := saved_modules(model)) else []
        parts += [f"with the rows of {count} tokens"] if (count := trained_rows(model)) else []
        return ", ".join(parts)

    def describe_init(self) -> str:
        return "initialized as LoRA (A at random, B zero)"


def parameter_obstacle(config: Config) -> str:
    """Why PEFT cannot adapt a parameter as a configuration says, in a few words; empty if it can."""
    options: Any = config.method
    if options.use_dora:
        return "PEFT has no DoRA for parameters (method.use_dora=false)"
    if config.adapter_dropout > 0:
        return "PEFT has no dropout for the adapters of parameters (adapter_dropout=0)"
    return ""


def without_directions(model: PeftModel, artifact: GradientArtifact, *, vectors: int, named: bool) -> dict[str, str]:
    """The layers that cannot begin along the gradient, by name, with the reason.

    Args:
        vectors: singular vectors that a rank takes.
        named: whether the user named the layers; then one that is too small is an error.

    Raises:
        TargetError: as `small_layers`.
    """
    ranks = {name: layer.r[ADAPTER] for name, layer in lora_layers(model).items()}
    shapes = {name: target.shape for name, target in base_targets(model).items()}
    small = small_layers(shapes, ranks, vectors=vectors, named=named)
    reasons = dict.fromkeys(small, "too small for the rank's directions")
    return reasons | dict.fromkeys(artifact.unreached & set(ranks), "no sampled row reached them")


def gradient_faults(config: Config, rank: int, vectors: int) -> Iterator[str]:
    """Describes options of ``gradient`` that do not go with the model, or with the rank.

    Args:
        rank: the largest rank of a layer.
        vectors: singular vectors that each rank takes.
    """
    capacity = config.gradient.capacity
    if capacity is not None and capacity < vectors * rank and not allocates(config):
        given = f"rank={rank}" if rank == config.rank else f"the rank {rank} of a layer"
        yield f"gradient.capacity={capacity} serves ranks up to {capacity // vectors}, not {given}"
    if config.gradient.estimator == "exact" and config.model.quantization is not None:
        given = f"model.quantization={config.model.quantization}"
        yield f"{given}: quantized weights have no gradient, so use gradient=sketch"
    if config.gradient.estimator == "exact" and config.model.shard:
        yield "model.shard=true: sharded weights have no complete gradient, so use gradient=sketch"


def without_decay(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Moves parameters into groups without weight decay, in place; changes nothing where there is no decay."""
    chosen = {id(item) for item in parameters}
    for group in list(optimizer.param_groups):
        apart = [item for item in group["params"] if id(item) in chosen]
        if apart and group["weight_decay"] != 0:
            group["params"] = [item for item in group["params"] if id(item) not in chosen]
            optimizer.add_param_group({**group, "params": apart, "weight_decay": 0.0})


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """PEFT's model around a base."""
    with without_false_warnings():
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def refuse_int8_on_cpu(targets: Mapping[str, Target]) -> None:
    """DoRA takes norms of the weight, and PEFT loses its scales when it reads an 8-bit weight on a CPU.

    Raises:
        TargetError
    """
    for name, target in targets.items():
        if target.packed:
            raise TargetError(f"{name}: PEFT's DoRA cannot read the weights of torchao: use method.use_dora=false")
        if target.weight.dtype == torch.int8 and target.weight.device.type == "cpu":
            raise TargetError(
                f"{name}: PEFT's DoRA cannot read 8-bit weights on a CPU: use model.quantization=nf4, another device, "
                "or method.use_dora=false"
            )
