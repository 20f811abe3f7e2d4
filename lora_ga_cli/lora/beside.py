"""What trains beside LoRA's factors: complete modules, and rows of embeddings.

PEFT has both (``modules_to_save`` and ``trainable_token_indices``). Here names are resolved before PEFT sees them, so
that a name which matches nothing is an error; weights that the base shares stay shared; and what trains is in float32,
whatever the type of the base.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_ga_cli.errors import TargetError, suggest
from lora_ga_cli.lora.layers import ADAPTER, PREFIX
from lora_ga_cli.lora.rows import compute_rows
from lora_ga_cli.model.targets import is_packed
from lora_ga_cli.model.vocabulary import Vocabulary, embedding_rows

LISTED = ("embed_tokens", "lm_head")
"""Names of modules whose shared weights PEFT keeps shared (``ensure_weight_tying``)."""


@dataclass(frozen=True)
class Beside:
    """What trains beside the factors, by full names in the base.

    Args:
        modules: modules that train completely, with those that share a weight with one of them.
        rows: the rows that train, by module.
        shared: groups of modules with one weight, the input embeddings first.
    """

    modules: list[str] = field(default_factory=list)
    rows: dict[str, list[int]] = field(default_factory=dict)
    shared: list[list[str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.modules or self.rows)

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """What PEFT's configuration says of it.

        Args:
            model: the base.
        """
        named = {name.rsplit(".", 1)[-1] for name in self.modules}
        linear = all(isinstance(model.get_submodule(name), nn.Linear) for group in self.shared for name in group[1:])
        groups = [group for group in self.shared if set(group) <= set(self.modules)]
        return {
            "modules_to_save": list(self.modules) or None,
            "trainable_token_indices": dict(self.rows) or None,
            "ensure_weight_tying": bool(groups) and linear and bool(named & set(LISTED)),
        }


def find_beside(
    model: PreTrainedModel,
    modules: Sequence[str],
    tokens: Sequence[int | str],
    *,
    new: Sequence[str] = (),
    targets: Collection[str] = (),
) -> Beside:
    """Resolves the options of what trains beside the factors.

    Args:
        model: the base, with or without weights; its attribute ``vocabulary`` is that of the tokenizer.
        modules: names or endings.
        tokens: numbers or texts of tokens whose rows train.
        new: full names of modules without weights in the model's files, which always train.
        targets: full names of the layers that get factors.

    Raises:
        TargetError: a name matches nothing, or a layer that gets factors; a module cannot train; there is no such
            token; PEFT cannot train rows of this model's embeddings.
    """
    vocabulary = getattr(model, "vocabulary", None) or Vocabulary()
    named = _named_modules(model, modules, targets)
    groups = _shared_weights(model)
    chosen = dict.fromkeys([*new, *named])
    touched = [group for group in groups if set(group) & set(chosen)]
    chosen |= dict.fromkeys(name for group in touched for name in group)
    embeddings = _name_of(model, model.get_input_embeddings())
    numbers = [_number_of(token, vocabulary, model) for token in tokens]
    if numbers and embeddings in chosen:
        raise TargetError(
            f"method.trainable_token_indices: {embeddings} trains completely already (method.modules_to_save): give "
            "one of the two options"
        )
    if embeddings not in chosen:
        numbers += vocabulary.new
    rows = _rows(model, embeddings, sorted(set(numbers)), groups, chosen) if numbers else {}
    shared = touched + [group for group in groups if set(group) & set(rows)]
    return Beside(list(chosen), rows, shared)


def finish(model: PeftModel, beside: Beside) -> None:
    """Completes what PEFT made of `Beside.arguments`, in place: shared weights are one parameter, and what trains is in
    float32.

    Raises:
        TargetError: PEFT made something else.
    """
    base: Any = model.get_base_model()
    wrappers = dict(_wrappers(model))
    saved = {name for name, wrapper in wrappers.items() if isinstance(wrapper, ModulesToSaveWrapper)}
    by_row = {name for name, wrapper in wrappers.items() if isinstance(wrapper, TrainableTokensWrapper)}
    rows = set(beside.rows).union(*(group for group in beside.shared if set(group) & set(beside.rows)))
    differing = sorted((set(beside.modules) - saved) | (by_row ^ rows))  # PEFT itself adds heads of classifiers
    if differing:
        raise TargetError(
            f"PEFT cannot train {', '.join(differing)} of {type(base).__name__} as "
            "method.modules_to_save, method.trainable_token_indices or model.new_tokens ask for"
        )
    for group in beside.shared:
        if set(group) <= saved:
            first, *others = (_copy(wrappers[name]) for name in group)
            for other in others:
                other.weight = first.weight
    for wrapper in wrappers.values():
        if isinstance(wrapper, ModulesToSaveWrapper):
            _train_in_float32(_copy(wrapper), base.dtype)
        else:
            for parameter in wrapper.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
            compute_rows(wrapper.token_adapter)


def embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained embeddings and rows of them."""
    found: dict[int, nn.Parameter] = {}
    for _, wrapper in _wrappers(model):
        of_rows = isinstance(wrapper, TrainableTokensWrapper)
        if of_rows or isinstance(_copy(wrapper), nn.Embedding):
            found |= {id(item): item for item in wrapper.parameters() if item.requires_grad}
    return list(found.values())


def saved_modules(model: nn.Module) -> list[str]:
    """Full names of the modules that train completely."""
    return [name for name, wrapper in _wrappers(model) if isinstance(wrapper, ModulesToSaveWrapper)]


def trained_rows(model: nn.Module) -> int:
    """How many tokens have rows that train."""
    counts = [
        len(wrapper.token_adapter.token_indices[ADAPTER])
        for _, wrapper in _wrappers(model)
        if isinstance(wrapper, TrainableTokensWrapper)
    ]
    return max(counts, default=0)


def _wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
            yield name.removeprefix(PREFIX), module


def _copy(wrapper: Any) -> Any:
    """The copy of a module that trains in its place."""
    return wrapper.modules_to_save[ADAPTER] if isinstance(wrapper, ModulesToSaveWrapper) else None


def _named_modules(model: nn.Module, wanted: Sequence[str], targets: Collection[str]) -> list[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, None] = {}
    for entry in wanted:
        hits = [name for name in modules if name == entry or name.endswith(f".{entry}")]
        if not hits:
            having = {name.rsplit(".", 1)[-1] for name, item in modules.items() if any(True for _ in item.parameters())}
            hint = suggest(entry, having)
            raise TargetError(f"method.modules_to_save: {entry!r} matches no module" + (f" ({hint})" if hint else ""))
        for name in hits:
            _refuse_module(entry, name, modules[name], targets)
        found |= dict.fromkeys(hits)
    return list(found)


def _refuse_module(entry: str, name: str, module: nn.Module, targets: Collection[str]) -> None:
    where = f"method.modules_to_save: {entry!r}" + (f" is {name}, which" if name != entry else "")
    inside = next((item for item in targets if item == name or item.startswith(f"{name}.")), None)
    if inside is not None:
        what = "gets LoRA factors" if inside == name else f"contains {inside}, which gets LoRA factors"
        raise TargetError(f"{where} {what}: leave it out of modules_to_save, or out of target_modules")
    parameters = list(module.parameters())
    if not parameters:
        raise TargetError(f"{where} has no weights that could train")
    if not all(item.is_floating_point() and not is_packed(item) for item in parameters):
        raise TargetError(f"{where} has quantized weights, which do not train: leave it out")


def _shared_weights(model: PreTrainedModel) -> list[list[str]]:
    """Groups of modules that have one tensor as their weight, the input embeddings first."""
    users: defaultdict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            users[id(weight)].append(name)
    embeddings = _name_of(model, model.get_input_embeddings())
    return [sorted(names, key=lambda name: name != embeddings) for names in users.values() if len(names) > 1]


def _name_of(model: nn.Module, module: Any) -> str:
    """The full name of a module; empty if it is not in the model."""
    return next((name for name, item in model.named_modules() if item is module), "")


def _number_of(token: int | str, vocabulary: Vocabulary, model: PreTrainedModel) -> int:
    where = f"method.trainable_token_indices: {token!r}"
    if isinstance(token, str):
        if token not in vocabulary.ids:
            raise TargetError(
                f"{where} is not one token of the tokenizer: give a token's number, or add it with model.new_tokens"
            )
        return vocabulary.ids[token]
    rows = embedding_rows(model)
    if not 0 <= token < rows:
        raise TargetError(f"{where}: the embeddings have rows 0 to {rows - 1}")
    return token


def _rows(
    model: PreTrainedModel,
    embeddings: str,
    numbers: list[int],
    groups: Sequence[Sequence[str]],
    saved: Mapping[str, None],
) -> dict[str, list[int]]:
    """The rows that train: in the input embeddings, and in the head where that has a weight of its own.

    (PEFT trains those of the embeddings alone, with which a model can read a new token and never write it.)
    """
    head: Any = model.get_output_embeddings()
    shared = next((set(group) for group in groups if embeddings in group), {embeddings})
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    if len(shared) > 1 and not tied:
        raise TargetError(
            f"PEFT cannot train rows of {embeddings}, which {', '.join(sorted(shared - {embeddings}))} share: use "
            f"method.modules_to_save=[{embeddings.rsplit('.', 1)[-1]}]"
        )
    rows = {embeddings: numbers}
    name = _name_of(model, head)
    if head is None or name in saved:
        return rows
    if getattr(head, "bias", None) is not None or type(head) is not nn.Linear:
        why = "has a bias, which PEFT would leave out" if isinstance(head, nn.Linear) else f"is a {type(head).__name__}"
        raise TargetError(
            f"rows of {name} cannot train, because it {why}: use method.modules_to_save=["
            f"{embeddings.rsplit('.', 1)[-1]},{name.rsplit('.', 1)[-1]}]"
        )
    if name not in shared:
        rows[name] = numbers
    return rows


def _train_in_float32(module: nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights of a module in float32, in place, and has it compute in the base's type.

    Small steps would be lost in half precision. What it computes is what the module computes with rounded weights.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return
    for leaf in module.modules():
        for parameter in leaf.parameters(recurse=False):
            parameter.data = parameter.data.float()
        if type(leaf) is nn.Linear:
            setattr(leaf, "forward", _Rounded(leaf))  # noqa: B010
        elif next(leaf.parameters(recurse=False), None) is not None:
            leaf.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))


class _Rounded:
    """The forward of a linear layer whose weight is rounded to the type of the input."""

    def __init__(self, layer: nn.Linear):
        self.layer = [layer]  # in a list, because a module would become a part of itself

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer[0]
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.weight.to(x.dtype), bias)
