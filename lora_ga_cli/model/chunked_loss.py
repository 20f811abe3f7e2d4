"""The loss of a causal language model at its labelled positions alone, a few at a time.

transformers computes logits at all positions, which for a large vocabulary need more memory than the rest of a forward
and backward pass. Here the model's own forward runs with a stand-in for its backbone, so that whatever lies between
hidden states and logits (bias, soft cap, scale, adapters on the head) stays the model's own code, and is called on the
hidden states of one chunk of positions after another.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lora_ga_cli.model.unsupported import Unsupported

CHUNK_BYTES = 2**26
"""The most memory in bytes that the logits of a chunk take in float32."""
SMALLEST_CHUNK = 128
"""Positions of the smallest chunk. Fewer would keep a GPU waiting for its next kernel."""
IGNORED = -100

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""The largest relative difference of loss and gradient that the check allows, by the type of the hidden states."""
CUDA_TOLERANCE = 2e-3
"""The same for float32 on a GPU, which may multiply matrices in TF32."""

Forward = Callable[..., Any]
Head = Callable[[Tensor], Tensor]
"""From hidden states (positions, hidden) to logits (positions, vocabulary)."""


@dataclass(frozen=True)
class _Chunking:
    """What an instance's new forward needs to know."""

    forward: Forward
    """The forward of the model's class, which takes the model first."""
    path: str
    """Where in the model its backbone is."""
    tokens: int | None
    """Positions of a chunk; None: by the size of the vocabulary."""
    sharded: bool
    """Whether weights of the model are divided among processes (FSDP2)."""


def chunk_size(vocabulary: int) -> int:
    """The positions of a chunk: as many as have logits of at most 64 MiB in float32, and at least 128."""
    return max(SMALLEST_CHUNK, CHUNK_BYTES // (4 * vocabulary) // SMALLEST_CHUNK * SMALLEST_CHUNK)


def use_chunked_loss(model: PreTrainedModel, tokens: int | None = None) -> None:
    """Changes this instance's forward: given labels, it computes the loss without logits of all positions.

    The output has ``loss`` and no ``logits``; the loss is the mean cross entropy over the same positions as before, or
    the sum divided by ``num_items_in_batch``. A batch without a labelled position has the loss 0 and gradients of 0,
    where transformers' mean is not a number. Without labels, or if tuples or selected logits (``logits_to_keep``) are
    asked for, the forward is the model's own.

    Where nothing behind the hidden states trains, their gradient is computed in the forward pass, chunk by chunk, and
    the head's product once. Otherwise each chunk is computed again in the backward pass. Each call decides, so adapters
    on the head may come later.

    To find the labelled positions, a call waits once for the device. A caller that knows their number passes it as
    ``num_labelled`` (an int; too large a number is no error), and then nothing waits.

    Args:
        tokens: positions of a chunk; None: `chunk_size` of the model's vocabulary.

    Raises:
        Unsupported: this model computes its loss in another way, or a check on a small batch fails.
    """
    own = _own_forward(model)
    sharded = any(isinstance(module, FSDPModule) for module in model.modules())
    tolerance = _tolerance(model)
    reason = "it has no backbone and head that can be called apart"
    for path in _backbones(model):
        try:
            reason = _differs(model, _Chunking(own, path, 3, sharded), tolerance)
        except torch.OutOfMemoryError:
            raise
        except Unsupported as error:
            reason = str(error)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            reason = f"its loss cannot be computed from hidden states alone ({type(error).__name__}: {first})"
        if not reason:
            _install(model, _Chunking(own, path, tokens, sharded))
            return
    raise Unsupported(f"{type(model).__name__}: {reason}")


def _own_forward(model: PreTrainedModel) -> Forward:
    if getattr(model.config, "is_encoder_decoder", False):
        raise Unsupported(f"{type(model).__name__} has an encoder, and its labels are not the next tokens")
    if model.get_output_embeddings() is None:
        raise Unsupported(f"{type(model).__name__} has no head that predicts tokens")
    installed = getattr(model, "_chunking", None)
    if installed is not None:
        return installed.forward
    replaced = vars(model).get(_slot(model))
    if replaced is None:
        return type(model).forward
    if isinstance(replaced, MethodType) and replaced.__self__ is model:
        return replaced.__func__
    raise Unsupported(f"the forward of this {type(model).__name__} was replaced by another tool")


def _slot(model: nn.Module) -> str:
    """The attribute that holds an instance's forward; accelerate's hooks keep it under another name."""
    return "_old_forward" if hasattr(model, "_hf_hook") else "forward"


def _backbones(model: PreTrainedModel) -> list[str]:
    """Where the part of the model that computes hidden states may be, the likeliest place first."""
    paths = {module: path for path, module in model.named_modules() if path}
    parts = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    found = [paths[module] for module in (model.base_model, model.get_decoder(), *parts) if module in paths]
    return list(dict.fromkeys(found))


def _install(model: PreTrainedModel, chunking: _Chunking) -> None:
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    # callers look at the names of arguments; `functools.wraps` would let accelerate unwrap this function
    forward.__signature__ = inspect.signature(chunking.forward)  # type: ignore[attr-defined]
    model._chunking = chunking  # type: ignore[assignment]
    setattr(model, _slot(model), MethodType(forward, model))


def _forward(model: PreTrainedModel, *args: Any, num_labelled: int | None = None, **kwargs: Any) -> Any:
    chunking: Any = model._chunking
    names = list(inspect.signature(chunking.forward).parameters)[1:]
    kwargs = dict(zip(names, args, strict=False)) | kwargs
    as_before = kwargs.get("labels") is None or not _returns_output(model, kwargs)
    keep = kwargs.get("logits_to_keep", 0)
    if as_before or isinstance(keep, Tensor) or keep:
        return chunking.forward(model, **kwargs)
    return _output(model, chunking, model.get_submodule(chunking.path), kwargs, num_labelled)


def _returns_output(model: PreTrainedModel, kwargs: dict[str, Any]) -> bool:
    wanted = kwargs.get("return_dict")
    return bool(getattr(model.config, "return_dict", True) if wanted is None else wanted)


def _output(
    model: PreTrainedModel,
    chunking: _Chunking,
    backbone: Forward,
    kwargs: dict[str, Any],
    num_labelled: int | None = None,
    trains: bool | None = None,
) -> Any:
    """The model's output with its loss, and without logits.

    Args:
        backbone: computes the hidden states.
        trains: whether something behind the hidden states trains; None: found out.

    Raises:
        Unsupported: the model does not call its loss function.
        ValueError: the labels do not have the shape of the hidden states.
    """
    trimmed = _Trimmed(backbone)
    losses: list[Tensor] = []

    def loss_function(
        logits: Tensor,
        labels: Tensor | None = None,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORED,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        hidden, size = trimmed.hidden, chunking.tokens or chunk_size(logits.shape[-1])
        if shift_labels is None:
            if labels is None or labels.shape != hidden.shape[:2]:
                raise ValueError("labels are not of the shape of the hidden states")
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.reshape(-1).to(hidden.device)
        targets = targets.masked_fill(targets == ignore_index, IGNORED)
        # the logits are those of one position, computed from a constant: they have a gradient if the head has one
        again = logits.requires_grad if trains is None else trains
        head = _Head(model, chunking, trimmed.output_type)
        rows, targets, count = _labelled(hidden.reshape(-1, hidden.shape[-1]), targets, num_labelled)
        summed = _summed_loss(head, rows, targets, size, again=again)
        items = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        losses.append(summed / (items.to(summed.device) if isinstance(items, Tensor) else items))
        return losses[-1]

    replica = _with_backbone(model, chunking.path, trimmed)
    vars(replica)["_loss_function"] = loss_function
    output = chunking.forward(replica, **kwargs)
    if not losses:
        raise Unsupported("it computes its loss without transformers' loss functions")
    return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def _labelled(hidden: Tensor, targets: Tensor, bound: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states and targets of labelled positions; one without a label stands for none.

    Args:
        hidden: shape (positions, hidden).
        targets: shape (positions,).
        bound: at least the number of labelled positions, or None to find out, for which the CPU waits.

    Returns:
        hidden states, targets, and the number of labelled positions on the device.
    """
    mask = targets != IGNORED
    count = mask.sum()
    if bound is None:
        positions = mask.nonzero().squeeze(1)
        if not len(positions):  # trained weights need a gradient in every process, also where it is 0
            positions = positions.new_zeros(1)
    else:
        bound = min(max(bound, 1), len(targets))
        torch._assert_async(count <= bound)
        positions = mask.to(torch.uint8).sort(descending=True, stable=True).indices[:bound]
    return hidden.index_select(0, positions), targets.index_select(0, positions), count


def _summed_loss(head: Head, hidden: Tensor, targets: Tensor, size: int, *, again: bool) -> Tensor:
    """The sum of the cross entropy in float32, in chunks of at most ``size`` positions.

    Args:
        hidden: shape (positions, hidden).
        targets: shape (positions,).
        again: whether to compute each chunk again in the backward pass, because something in the head trains.
    """
    if not torch.is_grad_enabled() or not (again or hidden.requires_grad):
        return _total(_cross_entropy(head, *chunk) for chunk in _chunks(hidden, targets, size))
    if again:
        parts = _chunks(hidden, targets, size)
        return _total(checkpoint(_cross_entropy, head, *chunk, use_reentrant=False) for chunk in parts)
    loss: Tensor = _GradientInForward.apply(hidden, targets, head, size)
    return loss


class _GradientInForward(torch.autograd.Function):
    """The summed cross entropy, whose gradient by the hidden states is known when the forward pass ends.

    It is computed from the sum, whose terms have gradients between -1 and 1, so that float16 does not lose them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, size: int) -> Tensor:
        gradient = torch.empty_like(hidden)
        losses = []
        for part, wanted, place in _chunks(hidden, targets, size, gradient):
            with torch.enable_grad():
                inputs = part.detach().requires_grad_()
                logits = head(inputs)
            loss, of_logits = cross_entropy_and_gradient(logits.detach(), wanted)
            (slope,) = torch.autograd.grad(logits, inputs, of_logits)
            place.copy_(slope)
            losses.append(loss)
        ctx.save_for_backward(gradient)
        return _total(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # a factor rounded to bfloat16 would change the length of every gradient
        return (gradient.float() * above).to(gradient.dtype), None, None, None


def cross_entropy_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed cross entropy in float32, and its gradient ``softmax(logits) - onehot(targets)`` by the logits.

    All of it is computed in one float32 copy of the logits, where autograd would keep three at its peak: at the end of
    the forward pass they would be the last thing that a small pass has no memory for.

    Args:
        logits: (positions, vocabulary); they are not changed.
        targets: (positions,); those that are `IGNORED` count for nothing.

    Returns:
        The loss, and the gradient (positions, vocabulary) in the type of the logits.
    """
    labelled = (targets != IGNORED).unsqueeze(1)
    chosen = targets.unsqueeze(1).clamp(min=0)
    scores = torch.empty_like(logits, dtype=torch.float32).copy_(logits)
    scores -= scores.amax(1, keepdim=True)
    of_target = scores.gather(1, chosen)
    total = scores.exp_().sum(1, keepdim=True)
    loss = torch.where(labelled, total.log() - of_target, 0).sum()
    scores *= labelled / total
    scores.scatter_add_(1, chosen, -labelled.float())
    return loss, scores.to(logits.dtype)


def _chunks(hidden: Tensor, targets: Tensor, size: int, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of nearly equal length of all tensors."""
    count = -(-len(hidden) // size)
    return zip(*(tensor.tensor_split(count) for tensor in (hidden, targets, *others)), strict=True)


def _cross_entropy(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")


def _total(losses: Any) -> Tensor:
    return torch.stack(list(losses)).sum()


class _StandIn:
    """Takes the place of the backbone in a copy of the model; whatever else is asked of it, the backbone answers."""

    def __init__(self, backbone: Any):
        self.backbone = backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)


class _Trimmed(_StandIn):
    """Computes hidden states, keeps them, and passes on those of one position as constants."""

    hidden: Tensor
    output_type: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.backbone(*args, **kwargs)
        self.hidden, self.output_type = output[0], type(output)
        return _replaced(output, self.hidden[:1, :1].detach())


class _Given(_StandIn):
    """Returns the output that it was given."""

    def __init__(self, backbone: Any, output: Any):
        super().__init__(backbone)
        self.output = output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


class _Seen(_StandIn):
    """Computes hidden states, and keeps the output."""

    output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.backbone(*args, **kwargs)
        return self.output


class _Head:
    """The model's own way from hidden states (positions, hidden) to logits (positions, vocabulary)."""

    def __init__(self, model: PreTrainedModel, chunking: _Chunking, output_type: Any):
        self.model, self.chunking, self.output_type = _gathered(model, chunking), chunking, output_type

    def __call__(self, hidden: Tensor) -> Tensor:
        rows = hidden.unsqueeze(0)
        output = (rows,) if issubclass(self.output_type, tuple) else self.output_type(last_hidden_state=rows)
        given = _Given(self.model.get_submodule(self.chunking.path), output)
        replica = _with_backbone(self.model, self.chunking.path, given)
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = self.chunking.forward(replica, input_ids=ids).logits
        return logits.squeeze(0)


def _replaced(output: Any, hidden: Tensor) -> Any:
    """The output of a backbone with other hidden states."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**dict(output.items()) | {"last_hidden_state": hidden})


def _with_backbone(model: PreTrainedModel, path: str, backbone: Any) -> PreTrainedModel:
    """A copy of the model that shares everything with it but the backbone."""
    replica: PreTrainedModel = _shallow_copy(model)
    parent: nn.Module = replica
    *parents, last = path.split(".")
    for name in parents:
        child = _shallow_copy(parent.get_submodule(name))
        parent._modules[name] = child
        parent = child
    parent._modules[last] = backbone
    return replica


def _gathered(model: PreTrainedModel, chunking: _Chunking) -> PreTrainedModel:
    """The model with a head that no longer counts its calls, if weights are sharded (FSDP2).

    FSDP2 gathers the head's weights when the backbone's end or the head is called, and keeps them until the backward
    pass has used them. Its hooks expect one call of each module in a forward pass.
    """
    if not chunking.sharded:
        return model
    gathered: PreTrainedModel = _without_hooks(model, chunking.path)
    return gathered


def _without_hooks(module: nn.Module, path: str) -> Any:
    """A copy whose modules outside of ``path`` are copies without the hooks of FSDP2; all share their weights."""
    replica = _shallow_copy(module)
    first, _, rest = path.partition(".")
    for name, child in module._modules.items():
        if child is not None and (name != first or rest):
            replica._modules[name] = _without_hooks(child, rest if name == first else "")
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        kept = {key: hook for key, hook in vars(module)[kind].items() if not _of_fsdp(hook)}
        vars(replica)[kind] = OrderedDict(kept)
    return replica


def _of_fsdp(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("torch.distributed.")


def _shallow_copy(module: Any) -> Any:
    # `copy.copy` calls the constructor of a sharded class
    replica = object.__new__(type(module))
    vars(replica).update(vars(module), _modules=dict(module._modules))
    return replica


def _differs(model: PreTrainedModel, chunking: _Chunking, tolerance: float) -> str:
    """Why loss or gradient of a small batch differ from the model's own; empty if they do not.

    The backbone runs once. The model is left as it was, and nothing is drawn from global generators.
    """
    batch = _small_batch(model)
    reasons: list[str] = []

    def compare(self: PreTrainedModel, **batch: Tensor) -> None:
        reasons.append(_difference(self, chunking, batch, tolerance))

    # through the model's call, which gathers sharded weights
    slot, before = _slot(model), vars(model).get(_slot(model))
    setattr(model, slot, MethodType(compare, model))
    try:
        with _untouched(model), torch.no_grad():
            model(**batch)
    finally:
        delattr(model, slot)
        if before is not None:
            setattr(model, slot, before)
    return reasons[0]


def _difference(model: PreTrainedModel, chunking: _Chunking, batch: dict[str, Tensor], tolerance: float) -> str:
    backbone = model.get_submodule(chunking.path)
    seen = _Seen(backbone)
    chunking.forward(_with_backbone(model, chunking.path, seen), **batch)
    if seen.output is None:
        return "its hidden states cannot be told apart from its logits"
    hidden = seen.output[0].detach().requires_grad_()
    given = _Given(backbone, _replaced(seen.output, hidden))
    model = _gathered(model, chunking)
    with torch.enable_grad():
        expected = chunking.forward(_with_backbone(model, chunking.path, given), **batch).loss
        (slope,) = torch.autograd.grad(expected, hidden)
        for trains in (False, True):
            loss = _output(model, chunking, given, batch, trains=trains).loss
            (gradient,) = torch.autograd.grad(loss, hidden)
            if not _distance(loss, expected) <= tolerance:
                return f"its loss is not the cross entropy of the next token ({float(loss):.6g}, {float(expected):.6g})"
            if not _distance(gradient, slope) <= tolerance:
                return "the gradient of its loss is not that of the cross entropy of the next token"
    return ""


def _small_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of six random tokens, some without a label."""
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    vocabulary = min(embeddings.weight.shape[0], 1000)
    ids = torch.randint(vocabulary, (2, 6), generator=generator)
    labels = ids.clone()
    labels[0, :2] = labels[1, 3] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _distance(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.detach().double() - expected.detach().double()).norm()
    return float(difference / expected.detach().double().norm())


def _tolerance(model: PreTrainedModel) -> float:
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
    if dtype == torch.float32 and model.device.type != "cpu":
        return CUDA_TOLERANCE
    return TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autocast, and afterwards every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
