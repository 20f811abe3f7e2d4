"""What a method leaves behind: the form of its result, by the kind of adapter, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """The form of a result.

    Args:
        noun: what a person calls it.
        loads_in: the library that loads it.
        merges: whether base and adapter can become one plain model.
        served: whether vLLM serves it as an adapter.
        ranked: whether it has a rank, or a width.
        neutral: whether it computes what the base does before its first step.
    """

    noun: str
    loads_in: str
    merges: bool = True
    served: bool = False
    ranked: bool = True
    neutral: bool = True


FORMS = {
    "none": Form("the whole model", "transformers", ranked=False),
    "lora": Form("a plain LoRA", "PEFT", served=True),
    "dora": Form("a DoRA adapter", "PEFT"),
    "adalora": Form("an AdaLoRA adapter", "PEFT"),
    "bottleneck": Form("bottleneck adapters", "loraga", merges=False),
    "prefix_embedding": Form("a trained prefix", "PEFT", merges=False, ranked=False, neutral=False),
    "prefix_layer": Form("trained prefixes of every layer", "loraga", merges=False, ranked=False, neutral=False),
}
"""By `MethodConfig.adapter`."""
