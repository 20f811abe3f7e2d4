"""Where a model stops when it generates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig


def model_ends(settings: Any) -> list[int]:
    """The tokens at which a model stops, by its generation settings or its configuration."""
    ends = getattr(settings, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return [int(token) for token in listed if token is not None]


def stop_also_at(model: Any, tokens: Sequence[int]) -> None:
    """Makes a model stop at more tokens, wherever it is saved and loaded; one that does not generate stays as it is."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return
    ends = list(dict.fromkeys([*model_ends(settings), *tokens]))
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends or None


def base_ends(path: str, settings: PreTrainedConfig, arguments: dict[str, Any]) -> list[int]:
    """The tokens at which a base model stops by itself, without its weights.

    Args:
        path: its folder, or its name on the hub.
        settings: its configuration.
        arguments: of ``from_pretrained``.
    """
    try:
        return model_ends(GenerationConfig.from_pretrained(path, **arguments))
    except OSError:  # a model without the file generates by its configuration
        return model_ends(settings.get_text_config(decoder=True))
