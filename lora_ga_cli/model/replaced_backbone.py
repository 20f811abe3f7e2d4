"""Copies of a causal language model that share everything with it but the backbone.

Something else stands in the place of the backbone, so that the model's own code between hidden states and logits can be
called with any hidden states.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


class StandIn:
    """Takes the place of the backbone in a copy of the model; whatever else is asked of it, the backbone answers."""

    def __init__(self, backbone: Any):
        self.backbone = backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)


class Trimmed(StandIn):
    """Computes hidden states, keeps them, and passes on those of one position as constants."""

    hidden: Tensor
    output_type: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.backbone(*args, **kwargs)
        self.hidden, self.output_type = output[0], type(output)
        return with_hidden_states(output, self.hidden[:1, :1].detach())


class Given(StandIn):
    """Returns the output that it was given."""

    def __init__(self, backbone: Any, output: Any):
        super().__init__(backbone)
        self.output = output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


class Seen(StandIn):
    """Computes hidden states, and keeps the output."""

    output: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self.backbone(*args, **kwargs)
        return self.output


def with_hidden_states(output: Any, hidden: Tensor) -> Any:
    """The output of a backbone with other hidden states."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**dict(output.items()) | {"last_hidden_state": hidden})


def with_backbone(model: PreTrainedModel, path: str, backbone: Any) -> PreTrainedModel:
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


def without_hooks(module: nn.Module, path: str) -> Any:
    """A copy whose modules outside of ``path`` are copies without the hooks of FSDP2; all share their weights."""
    replica = _shallow_copy(module)
    first, _, rest = path.partition(".")
    for name, child in module._modules.items():
        if child is not None and (name != first or rest):
            replica._modules[name] = without_hooks(child, rest if name == first else "")
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
