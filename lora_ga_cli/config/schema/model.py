"""The section ``model``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from lora_ga_cli.config.exclusions import Exclusion
from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.config.schema.values import Dtype, Positive, Task, Token, all_different


class ModelConfig(Section):
    """The base model and how it is loaded."""

    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        Exclusion("model.quantization", ("model.double_quantization",), lambda value: value != "nf4"),
        Exclusion("model.task", ("model.dtype",), lambda value: value == "sequence_classification"),
    )

    path: str
    """The base model: its name on the hub (``org/name``), a local folder, or ``bundled:tiny_base``."""
    task: Task = "causal_lm"
    """What the model does. It decides the class that the model is loaded with, and how rows become examples."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Type of the base model's weights in memory. Adapters always train in float32."""
    quantization: Literal["nf4", "int8", "stored"] | None = None
    """Quantize the base model's linear layers with bitsandbytes while loading: ``nf4`` is 4-bit NormalFloat, ``int8``
    8-bit integers. ``stored``: the model's files hold quantized weights (of bitsandbytes or torchao), which stay as
    they are. The quantized weights do not change."""
    double_quantization: bool = False
    """Quantize the scales of ``nf4`` too, which saves about 0.4 bits per weight."""
    shard: bool = False
    """Distribute the base model's weights over the processes of a run (FSDP2). Each process gathers a block only while
    it computes with it, so that the base model may be larger than the memory of one device."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """The attention implementation of transformers that is used. Null: transformers chooses one that the model has,
    ``sdpa`` where it can."""
    tokenizer: str | None = None
    """A tokenizer to use instead of the model's: its name on the hub, or a local folder."""
    new_tokens: Annotated[list[Token], AfterValidator(all_different)] = Field(default_factory=list)
    """Tokens that the tokenizer gets in addition, such as ``<think>``. The embeddings grow by as many rows, each of
    which begins as the mean of all others. The new rows train, and with them those of an output head that is not tied
    to the embeddings."""
    num_labels: Positive | None = None
    """Number of classes of a sequence classifier. Null counts them in the training data."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Can only be set on the command line."""
