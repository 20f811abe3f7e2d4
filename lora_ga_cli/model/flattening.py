"""Whether a causal model takes rows one after another, without padding, and with which attention.

Whether it does is found out by a small batch, not from a list of names: a model that ignores the boundaries of rows
computes something, and its loss even falls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from lora_ga_cli.model.probe import TOLERANCE, relative_difference
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.model.varlen import BOUNDARIES, NAME, Kernel, check_windows, register_varlen

VARIABLE_LENGTH = "variable-length attention"
BLOCK_MASK = "a block mask"
LENGTHS = (5, 1, 7, 3)
"""Tokens of the rows of the batch that is tried."""


def use_flattening(model: PreTrainedModel, device: torch.device, *, block_mask: bool = True) -> str:
    """Prepares a model for flattened batches, and finds out that their rows see only themselves.

    On a GPU and in half precision, attention is computed by kernels for rows of variable length where the model allows
    it, and elsewhere by the model's own implementation with a mask of tokens times tokens. Padded batches go on working
    as before.

    Args:
        model: a causal model, as transformers loaded it.
        device: where it is.
        block_mask: whether a mask may keep rows apart. It computes attention between all tokens of a pass.

    Returns:
        How its attention keeps rows apart, for people: `VARIABLE_LENGTH` or `BLOCK_MASK`.

    Raises:
        Unsupported: it does not take such rows; it is then as it was before.
    """
    prepared = prepare(model)
    try:
        return _chosen(model, device, block_mask=block_mask)
    except BaseException:
        prepared.remove()
        raise


def _chosen(model: PreTrainedModel, device: torch.device, *, block_mask: bool) -> str:
    implementation = model.config._attn_implementation
    if implementation.startswith("flash"):
        check_flattening(model)
        return VARIABLE_LENGTH
    reason = "kernels for rows of variable length need a GPU and half precision"
    if device.type == "cuda" and implementation == "sdpa" and _dtype(model) in (torch.float16, torch.bfloat16):
        try:
            use_varlen(model)
        except Unsupported as error:
            reason = str(error)
        else:
            return VARIABLE_LENGTH
    if not block_mask:
        raise Unsupported(f"{reason} (trainer.flatten=true keeps rows apart by a mask)")
    check_flattening(model)
    return BLOCK_MASK


def use_varlen(model: PreTrainedModel, kernel: Kernel | None = None) -> None:
    """Has a prepared model compute attention of flattened batches with kernels for rows of variable length.

    Args:
        kernel: see `register_varlen`.

    Raises:
        Unsupported: they do not compute this model's attention; it is then as it was before.
    """
    with _restored_without_success(model):
        register_varlen(kernel)
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise Unsupported("its attention is code of its own")
        with _untouched(model):
            rows = _rows(model)
            model.train()  # only then attention has dropout
            _logits(model, _flattened(model, rows))
            model.eval()
            _called(lambda: check_windows(model, _padded(model, rows)))
        check_flattening(model)


def check_flattening(model: PreTrainedModel) -> None:
    """Checks on a few tokens that the rows of a flattened batch see only themselves, and get the logits of padded rows.

    Nothing is left of it in the model, or in the global generators of random numbers.

    Raises:
        Unsupported: says what is wrong.
    """
    rows = _rows(model)
    other = [(rows[0] + 1) % _vocabulary(model), *rows[1:]]
    with _untouched(model):
        logits = _logits(model, _flattened(model, rows))[0]
        beside_other = _logits(model, _flattened(model, other))[0]
        padded = _padded(model, rows)
        expected = _logits(model, padded)[padded["attention_mask"].bool()]
    if not expected.isfinite().all():
        raise Unsupported("the logits of padded rows are not finite")
    allowed = _tolerance(model)
    first = LENGTHS[0]
    if not relative_difference(beside_other[first:], logits[first:]) <= allowed:
        raise Unsupported("its rows would see each other")
    difference = relative_difference(logits, expected)
    if not difference <= allowed:
        raise Unsupported(f"its logits would differ from those of padded rows by {difference:.1e}")


def prepare(model: PreTrainedModel) -> RemovableHandle:
    """Makes the backbone's forward ready for flattened batches, until the handle is removed.

    Raises:
        Unsupported: there is no backbone.
    """
    parts = [model.base_model, *(part for part in model.children() if isinstance(part, PreTrainedModel))]
    backbone = next((part for part in parts if part is not model), None)
    if backbone is None:
        raise Unsupported("its backbone is no module of its own")
    parameters = inspect.signature(backbone.forward).parameters.values()
    caches = any(each.name == "use_cache" or each.kind is each.VAR_KEYWORD for each in parameters)

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if kwargs.get(BOUNDARIES) is None:
            return None
        # with a cache, transformers takes all tokens for one row
        changed: dict[str, Any] = {"use_cache": False} if caches else {}
        if module.config._attn_implementation == NAME:
            changed["attention_mask"] = _unread_mask(kwargs[BOUNDARIES], kwargs["position_ids"])
        return args, kwargs | changed

    return backbone.register_forward_pre_hook(before, with_kwargs=True)


def _unread_mask(bounds: Tensor, positions: Tensor) -> Tensor:
    """A mask of one element in the shape of a complete one, so that transformers makes none.

    It would find rows by their positions and wait for the device, for a mask that kernels for variable lengths do not
    read.
    """
    tokens = positions.shape[-1]
    return bounds.new_ones(1, dtype=torch.bool).expand(1, 1, tokens, tokens)


@contextmanager
def _restored_without_success(model: PreTrainedModel) -> Iterator[None]:
    """Restores the implementations of attention if anything is raised."""
    implementations = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        yield
    except BaseException:
        for config, implementation in implementations:
            config._attn_implementation_internal = implementation
        raise


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configurations of a model and of its parts."""
    found: dict[int, PreTrainedConfig] = {}

    def add(config: PreTrainedConfig) -> None:
        found[id(config)] = config
        for name in config.sub_configs:
            if getattr(config, name, None) is not None:
                add(getattr(config, name))

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            add(module.config)
    return list(found.values())


@contextmanager
def _untouched(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without autocast or gradients; afterwards modes and generators are as before."""
    modes = [(module, module.training) for module in model.modules()]
    device = _device(model)
    model.eval()
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training


def _called(function: Callable[[], Any]) -> Any:
    """The function's result.

    Raises:
        Unsupported: instead of any error of the model or the device.
    """
    try:
        return function()
    except Unsupported:
        raise
    except Exception as error:  # of code that is not known here
        first = str(error).strip().split("\n")[0]
        raise Unsupported(f"it does not take rows one after another ({type(error).__name__}: {first})") from None


def _logits(model: PreTrainedModel, batch: dict[str, Any]) -> Tensor:
    logits: Tensor = _called(lambda: model(**batch).logits.float())
    return logits


def _rows(model: PreTrainedModel) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(_vocabulary(model), (length,), generator=generator) for length in LENGTHS]


def _flattened(model: PreTrainedModel, rows: Sequence[Tensor]) -> dict[str, Any]:
    """As `data.flatten.flatten_tokens` makes it, without labels."""
    device = _device(model)
    lengths = [len(row) for row in rows]
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return {
        "input_ids": torch.cat(list(rows))[None].to(device),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None].to(device),
        BOUNDARIES: bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _padded(model: PreTrainedModel, rows: Sequence[Tensor]) -> dict[str, Tensor]:
    device = _device(model)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {
        "input_ids": pad_sequence(list(rows), batch_first=True).to(device),
        "attention_mask": mask.to(device),
    }


def _vocabulary(model: PreTrainedModel) -> int:
    return min(int(model.config.get_text_config().vocab_size), 1000)


def _device(model: PreTrainedModel) -> torch.device:
    return _embeddings(model).device


def _dtype(model: PreTrainedModel) -> torch.dtype:
    return _embeddings(model).dtype


def _embeddings(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _tolerance(model: PreTrainedModel) -> float:
    """The largest relative difference of logits; on a GPU, float32 may be rounded to TF32."""
    dtype = _dtype(model)
    if dtype == torch.float32 and _device(model).type != "cpu":
        return TOLERANCE[torch.float16]
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])
