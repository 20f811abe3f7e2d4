"""Bases whose files hold quantized weights: which of them train, in which form, and which are refused.

- `KEPT`: the weights stay as they are in the files, and the adapter trains beside them (``model.quantization=stored``).
- `DEQUANTIZED`: transformers dequantizes the weights while it loads them. (The kernels that compute with them as they
  are run on GPUs, and training through them was not tested.)
- All others are refused by name: they need packages or kernels with which this program was not tested.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import transformers
from transformers import PreTrainedConfig

from lora_ga_cli.errors import Fault, InvalidInput

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import ModelConfig

STORED = "stored"
"""The value of ``model.quantization`` for a base whose files hold quantized weights."""
KEPT = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}
"""Kinds that train as they are, with the module that they need."""
DEQUANTIZED = {
    "fp8": "FineGrainedFP8Config",
    "mxfp8": "FineGrainedFP8Config",
    "mxfp4": "Mxfp4Config",
    "compressed-tensors": "CompressedTensorsConfig",
}
"""Kinds that are dequantized while they are loaded, with transformers' class that says so."""
INSTALL = {
    "bitsandbytes": "pip install 'loraga[quantized]'",
    "torchao": "pip install 'loraga[torchao]'",
    "compressed_tensors": "pip install 'loraga[compressed-tensors]'",
}
"""How the modules are installed that a kind needs."""


def stored_kind(settings: PreTrainedConfig) -> str | None:
    """How the files of a base are quantized, by transformers' name (``fp8``); None if they are not."""
    stored = _stored(settings)
    if not stored:
        return None
    if stored.get("load_in_4bit") or stored.get("load_in_8bit"):
        return "bitsandbytes"
    method = stored.get("quant_method")
    return str(getattr(method, "value", method) or "an unknown method")


def dequantized_kind(settings: PreTrainedConfig) -> str | None:
    """How the files of a base are quantized, if its weights are dequantized while they are loaded."""
    kind = stored_kind(settings)
    return kind if kind in DEQUANTIZED else None


def check_stored(config: ModelConfig, settings: PreTrainedConfig, *, to_train: bool = True) -> None:
    """Refuses a base that cannot be trained on in the form that its files and ``model.quantization`` say.

    Args:
        settings: the base's configuration in transformers.
        to_train: False for a model that is scored only: then kinds that do not train are left to transformers.

    Raises:
        InvalidInput
    """
    faults = [Fault(f"model.path={config.path}", what, hint) for what, hint in _faults(config, settings, to_train)]
    if faults:
        raise InvalidInput(faults)


def stored_arguments(settings: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that have it dequantize the weights; empty where that is not needed."""
    kind = dequantized_kind(settings)
    return {} if kind is None else {"quantization_config": getattr(transformers, DEQUANTIZED[kind])(dequantize=True)}


def stored_bits(settings: PreTrainedConfig) -> int:
    """Bits of a weight that stays as it is in the files, without its scales."""
    return 4 if _stored(settings).get("load_in_4bit") else 8


def is_doubly_quantized(settings: PreTrainedConfig) -> bool:
    """Whether the scales of 4-bit weights are quantized too."""
    return bool(_stored(settings).get("bnb_4bit_use_double_quant"))


def _stored(settings: PreTrainedConfig) -> dict[str, Any]:
    for part in (settings, settings.get_text_config()):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            return dict(found) if isinstance(found, dict) else found.to_dict()
    return {}


def _faults(config: ModelConfig, settings: PreTrainedConfig, to_train: bool) -> Iterator[tuple[str, str]]:
    """What is wrong, and the next step."""
    kind, given = stored_kind(settings), config.quantization
    if kind is None:
        if given == STORED:
            yield (
                "its files hold no quantized weights, so model.quantization=stored means nothing",
                "model.quantization=nf4 or int8 quantizes it while loading",
            )
        return
    what = f"its files hold weights quantized by {kind}"
    if kind in KEPT:
        module = KEPT[kind]
        if given != STORED:
            but = f", and model.quantization={given} would quantize them again" if given else ""
            yield f"{what}{but}", "model.quantization=stored trains on them as they are"
        unsupported = _unsupported(_stored(settings))
        if unsupported and to_train:
            yield f"{what}, as {unsupported}, through which PEFT does not train", _unquantized(given)
    elif kind in DEQUANTIZED:
        module = kind.replace("-", "_") if kind == "compressed-tensors" else ""
        if given is not None:
            yield (
                f"{what}, which are dequantized before they train, and model.quantization={given} is given",
                "leave model.quantization out: the weights are then in model.dtype",
            )
        if config.shard:
            yield f"{what}, which cannot be dequantized in shards", "model.shard=false"
    else:
        if to_train or given is not None:
            yield f"{what}, on which loraga does not train", _unquantized(given)
        return
    if module and importlib.util.find_spec(module) is None:
        yield f"{what}, which need the package {module}", INSTALL[module]


def _unsupported(stored: dict[str, Any]) -> str:
    """The form of weights of a kind in `KEPT` that does not train; empty if it does."""
    if stored.get("load_in_4bit"):
        form = str(stored.get("bnb_4bit_quant_type", "fp4"))
        return "" if form == "nf4" else form
    if stored.get("quant_method") == "torchao":
        quant_type = stored.get("quant_type")
        default = quant_type.get("default", {}) if isinstance(quant_type, dict) else {}
        form = default.get("_type", "") if isinstance(default, dict) else default
        return "" if form in ("Int8WeightOnlyConfig", "int8_weight_only") else str(form or quant_type)
    return ""


def _unquantized(given: str | None) -> str:
    how = given if given in ("nf4", "int8") else "nf4"
    return f"take the base before it was quantized, with model.quantization={how}"
