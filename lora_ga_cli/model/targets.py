"""The weights of a model that get an adapter: those of linear layers, and parameters such as the weights of experts."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from lora_ga_cli.errors import InvalidInput, TargetError, suggest
from lora_ga_cli.expressions import Expression
from lora_ga_cli.model.experts import expert_weights
from lora_ga_cli.model.unadaptable import unadaptable

ALL_LINEAR = "all-linear"
ALL_EXPERTS = "all-experts"


@dataclass(frozen=True)
class Target:
    """A linear layer ``y = W x``, with W of shape (d_out, d_in), or all such layers of a module's experts.

    Args:
        name: the full name of the module, or that of the parameter where it is not the weight of a linear layer.
        module: the module that has the parameter.
        parameter: the parameter's name in the module.
        expert: the number of one expert, whose layer this is; None for the layers of all experts, and for a linear
            layer.
    """

    name: str
    module: nn.Module
    parameter: str = "weight"
    expert: int | None = None

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as the module stores it: (d_out, d_in), or (d_in, d_out) where it is `transposed`. That of
        experts has their number before these, also where `expert` names one of them."""
        weight = getattr(self.module, self.parameter)
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def parameter_name(self) -> str:
        """The full name of the parameter in the model."""
        return f"{self.name}.{self.parameter}" if self.is_module else self.name

    @property
    def is_module(self) -> bool:
        """Whether it is a linear layer of its own, which is called, in contrast to a parameter of another module."""
        return isinstance(self.module, nn.Linear | Conv1D)

    @property
    def experts(self) -> int:
        """How many experts' layers the parameter holds; 0 for one layer alone."""
        return self.weight.shape[0] if not self.is_module and self.weight.dim() == 3 else 0

    @property
    def layers(self) -> list[Target]:
        """The layers one by one: ``NAME.0``, ``NAME.1``, … for experts, else the target itself."""
        if self.expert is not None or not self.experts:
            return [self]
        return [replace(self, name=f"{self.name}.{number}", expert=number) for number in range(self.experts)]

    @property
    def transposed(self) -> bool:
        """Whether the module stores W as (d_in, d_out), as GPT-2's `Conv1D` does, and gpt-oss for its experts.

        PEFT reads from the same attribute which side of an expert's weight is which. The experts of Llama 4 lack it and
        are stored as (d_in, d_out) too, so that here as in PEFT, d_out is the width of their input: the adapter has
        the same product, and its A and B change places.
        """
        return isinstance(self.module, Conv1D) or bool(self.experts and getattr(self.module, "is_transposed", False))

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of one layer, however the module stores W; a quantized weight has another shape in memory."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        rows, columns = self.weight.shape[-2:]
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def quantized(self) -> bool:
        """Whether W is stored as integers, so that nothing can be added to it."""
        return self.packed or not self.weight.is_floating_point()

    @property
    def packed(self) -> bool:
        """Whether W is a tensor of torchao's, which holds integers and scales and calls itself floating-point."""
        return is_packed(self.weight)

    @property
    def scales(self) -> list[Tensor]:
        """The scales that bitsandbytes multiplies a quantized weight by to get W; empty for other weights."""
        state = getattr(self.weight, "quant_state", None)  # of 4 bits
        nested = getattr(state, "state2", None)
        of_4_bits = [getattr(state, "absmax", None), getattr(state, "offset", None), getattr(nested, "absmax", None)]
        of_8_bits = [getattr(self.weight, "SCB", None), getattr(getattr(self.module, "state", None), "SCB", None)]
        return [scale for scale in of_4_bits if scale is not None] + [
            scale for scale in of_8_bits if scale is not None
        ][:1]  # the module may have the scales of 8 bits twice

    @property
    def sharded(self) -> bool:
        """Whether W is sharded over several processes (FSDP2)."""
        return isinstance(self.weight.data, DTensor)

    def oriented(self, matrix: Tensor) -> Tensor:
        """Turns a matrix in the layout of the stored weight into (d_out, d_in), and back; or those of all experts."""
        return matrix.mT if self.transposed else matrix


def find_targets(
    model: nn.Module,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    target_parameters: str | Sequence[str] = (),
) -> dict[str, Target]:
    """The linear layers that ``target_modules`` names, in the model's order, then what ``target_parameters`` names.

    Args:
        model: any module; `nn.Linear` and transformers' `Conv1D` can be targets.
        target_modules: ``all-linear`` (every linear layer but output and classifier heads and those that are
            `unadaptable`), a list whose entries are full names or endings (``q_proj``), or a regular expression that
            matches full names.
        target_parameters: ``all-experts`` (the weights of all experts, of which a model may have none), or a list whose
            entries are full names or endings of parameters (``experts.down_proj``).

    Raises:
        TargetError: an entry matches nothing or something that cannot be adapted; a weight is shared with another
            module.
    """
    parameters = _parameters(model, target_parameters)
    modules = dict(model.named_modules())
    linear = {name: Target(name, module) for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    if target_modules == ALL_LINEAR:
        left_out = _head_names(model) | set(unadaptable(model))
        chosen = {name: target for name, target in linear.items() if name not in left_out}
        if not chosen:
            raise TargetError(f"target_modules=all-linear: {type(model).__name__} has no linear layer besides its head")
    elif isinstance(target_modules, str):
        chosen = _matching_pattern(linear, target_modules)
    elif target_modules or not parameters:
        chosen = _matching_names(modules, linear, target_modules)
    else:  # PEFT's way to adapt parameters alone
        chosen = {}
    if target_modules != ALL_LINEAR:
        _refuse_unadaptable(model, chosen)
    chosen |= parameters
    _refuse_shared(model, chosen)
    return chosen


def is_packed(weight: Tensor) -> bool:
    """Whether a weight consists of other tensors, as those of torchao do."""
    return is_traceable_wrapper_subclass(weight) and not isinstance(weight.data, DTensor)


def new_modules(model: nn.Module) -> list[str]:
    """The modules that train in full, together with the adapter: those that the model's files have no weights for, as
    `load_model` lists them, and the head of a sequence classifier."""
    return sorted({*getattr(model, "newly_initialized", []), *classifier_heads(model)})


def classifier_heads(model: nn.Module) -> list[str]:
    """The modules that a sequence classifier of transformers has beside its base model; empty for other models."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    base = getattr(model, "base_model_prefix", "")
    return [
        name for name, child in model.named_children() if name != base and next(child.parameters(), None) is not None
    ]


def check_rank(shapes: Mapping[str, tuple[int, int]], rank: int, vectors: int) -> None:
    """Checks that every layer has enough singular vectors for a rank.

    Args:
        shapes: (d_out, d_in) by layer.
        rank: the rank asked for.
        vectors: singular vectors that the initialization needs, 2·rank for LoRA-GA.

    Raises:
        TargetError: names the layers whose smaller side is below ``vectors``.
    """
    small = {name: shape for name, shape in shapes.items() if min(shape) < vectors}
    if not small:
        return
    name, shape = min(small.items(), key=lambda item: min(item[1]))
    max_rank = min(shape) * rank // vectors
    others = f"; {len(small)} layers are too small" if len(small) > 1 else ""
    raise TargetError(
        f"rank={rank} needs {vectors} singular vectors, and {name} (d_out {shape[0]}, d_in {shape[1]}) "
        f"has {min(shape)}{others}: choose rank={max(max_rank, 1)} or less, or leave such layers out of target_modules"
    )


def small_layers(
    shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int], *, vectors: int, named: bool
) -> set[str]:
    """The layers that have too few singular vectors for their rank, such as a gate with one output.

    Among all linear layers of a model there may be some. Where the layers are named one by one, or the small ones have
    half of the weights, the rank is too large.

    Args:
        shapes: (d_out, d_in) by layer.
        ranks: by layer.
        vectors: singular vectors that the initialization needs, as a multiple of the rank: 2 for LoRA-GA.
        named: whether the user named the layers.

    Raises:
        TargetError: as `check_rank`.
    """
    small = sorted(
        (name for name, shape in shapes.items() if min(shape) < vectors * ranks[name]),
        key=lambda name: min(shapes[name]),
    )
    weights = {name: shape[0] * shape[1] for name, shape in shapes.items()}
    shares = accumulate(weights[name] / sum(weights.values()) for name in small)
    spared = {name for name, share in zip(small, shares, strict=True) if share < 0.5 and not named}
    shapes = {name: shape for name, shape in shapes.items() if name not in spared}
    for rank in sorted(set(ranks.values())):
        check_rank({name: shape for name, shape in shapes.items() if ranks[name] == rank}, rank, vectors * rank)
    return spared


def configured_ranks(targets: Collection[str], rank: int, pattern: Mapping[str, int]) -> dict[str, int]:
    """The rank of every target by full name: ``rank``, or what ``pattern`` says of it (`ranks_of`).

    Raises:
        TargetError: an entry of the pattern matches no target.
    """
    return dict.fromkeys(targets, rank) | ranks_of(targets, pattern)


def ranks_of(targets: Collection[str], pattern: Mapping[str, int]) -> dict[str, int]:
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


def shortest_names(model: nn.Module, targets: Mapping[str, Target]) -> list[str]:
    """The shortest list of endings that selects exactly these targets (``q_proj``, …), else their full names."""
    endings = {name.rsplit(".", 1)[-1] for name in targets}
    selected = {name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] in endings}
    return sorted(endings) if selected == set(targets) else list(targets)


def fingerprint(targets: Mapping[str, Target]) -> str:
    """Hexadecimal SHA-256 over the names, types, shapes and bytes of the targets' weights."""

    def digest(target: Target) -> bytes:
        weight = target.weight.detach()
        head = f"{target.name}|{weight.dtype}|{tuple(weight.shape)}|".encode()
        if target.packed:
            parts: Any = weight
            inner = b"".join(_digest(getattr(weight, name)) for name in parts.__tensor_flatten__()[0])
            return hashlib.sha256(head + inner).digest()
        weight = (weight.full_tensor() if isinstance(weight, DTensor) else weight).cpu().contiguous()
        scales = b"".join(_digest(scale) for scale in target.scales)
        return hashlib.sha256(head + _digest(weight) + scales).digest()

    # all processes must gather shards in the same order
    sharded = any(isinstance(target.weight.data, DTensor) for target in targets.values())
    with ThreadPoolExecutor(max_workers=1 if sharded else 4) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, targets.values()))).hexdigest()


def _head_names(model: nn.Module) -> set[str]:
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    heads = {name for name, module in model.named_modules() if output is not None and module is output}
    for head in new_modules(model):
        heads |= {name for name, _ in model.named_modules() if name == head or name.startswith(f"{head}.")}
    return heads


def _matching_pattern(linear: Mapping[str, Target], pattern: str) -> dict[str, Target]:
    try:
        names = Expression("target_modules", pattern).matching(linear)
    except InvalidInput as error:
        raise TargetError(str(error)) from None
    chosen = {name: linear[name] for name in names}
    if not chosen:
        hint = suggest(pattern, {name.rsplit(".", 1)[-1] for name in linear})
        raise TargetError(
            f"target_modules={pattern}: as a regular expression it matches no full name of a linear layer such as "
            f"{next(iter(linear), 'none')}" + (f"; {hint} then write target_modules=[NAME]" if hint else "")
        )
    return chosen


def _matching_names(
    modules: Mapping[str, nn.Module], linear: Mapping[str, Target], wanted: Sequence[str]
) -> dict[str, Target]:
    if not wanted:
        raise TargetError("target_modules is an empty list: nothing would be adapted")
    chosen: set[str] = set()
    for entry in wanted:
        hits = [name for name in modules if name == entry or name.endswith(f".{entry}")]
        if not hits:
            hint = suggest(entry, {name.rsplit(".", 1)[-1] for name in linear})
            raise TargetError(f"target_modules: {entry!r} matches no module" + (f" ({hint})" if hint else ""))
        for name in hits:
            if name not in linear:
                kind = type(modules[name]).__name__
                raise TargetError(f"target_modules: {entry!r} is {name}, a {kind}; only linear layers can be adapted")
        chosen.update(hits)
    return {name: target for name, target in linear.items() if name in chosen}


def _parameters(model: nn.Module, wanted: str | Sequence[str]) -> dict[str, Target]:
    """The parameters that entries name as PEFT matches them: a full name, or its last parts."""
    experts = expert_weights(model)
    names = dict(model.named_parameters())
    if wanted == ALL_EXPERTS:
        return {name: _parameter(model, name) for name in experts}
    chosen: set[str] = set()
    for entry in wanted:
        hits = [name for name in names if name == entry or name.endswith(f".{entry}")]
        if not hits:
            endings = sorted({".".join(name.split(".")[-2:]) for name in experts})
            has = f"the experts' weights are {', '.join(endings)}" if endings else "the model has no experts"
            hint = suggest(entry, endings)
            raise TargetError(f"target_parameters: {entry!r} matches no parameter ({hint or has})")
        for name in hits:
            target = _parameter(model, name)
            if target.is_module:
                raise TargetError(
                    f"target_parameters: {entry!r} is the weight of a linear layer, {name}: name it in target_modules"
                )
            if target.weight.dim() != 2 and name not in experts:
                shape = " × ".join(map(str, target.weight.shape))
                raise TargetError(
                    f"target_parameters: {entry!r} is {name}, of shape {shape}; only matrices and the weights of "
                    "experts can be adapted"
                )
        chosen.update(hits)
    return {name: _parameter(model, name) for name in names if name in chosen}


def _parameter(model: nn.Module, name: str) -> Target:
    """A parameter by its full name, whatever module has it."""
    module_name, _, parameter = name.rpartition(".")
    return Target(name, model.get_submodule(module_name), parameter)


def _refuse_unadaptable(model: nn.Module, targets: Mapping[str, Target]) -> None:
    for name, reason in unadaptable(model).items():
        if name in targets:
            raise TargetError(f"{name}: {reason}; leave {name.rsplit('.', 1)[-1]} out of target_modules")


def _refuse_shared(model: nn.Module, targets: Mapping[str, Target]) -> None:
    users: dict[object, set[str]] = defaultdict(set)
    for module_name, module in model.named_modules(remove_duplicate=False):
        for parameter_name, parameter in module.named_parameters(recurse=False):
            users[_storage(parameter)].add(f"{module_name}.{parameter_name}".lstrip("."))
    for name, target in targets.items():
        others = users[_storage(target.weight)] - {target.parameter_name}
        if others:
            option = "target_modules" if target.is_module else "target_parameters"
            raise TargetError(
                f"{name}: its weight is shared with {', '.join(sorted(others))}, so an adapter on one would change the "
                f"other; leave {name.rsplit('.', 1)[-1]} out of {option}"
            )


def _storage(parameter: nn.Parameter) -> int:
    """The same number for all uses of a weight: its address in memory, or the object's id if it has no memory."""
    in_memory = parameter.device.type != "meta" and not isinstance(parameter.data, DTensor)
    return (parameter.data_ptr() if in_memory else 0) or id(parameter)


def _digest(tensor: Tensor) -> bytes:
    """The SHA-256 digest of a tensor's bytes."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).digest()
