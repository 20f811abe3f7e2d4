"""The section ``trainer``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from lora_ga_cli.config.exclusions import Exclusion
from lora_ga_cli.config.schema.section import Section
from lora_ga_cli.config.schema.values import Fraction, Positive, Tracker, all_different


class TrainerConfig(Section):
    """The training loop, which is transformers' Trainer. The defaults are those of the LoRA-GA paper where it states
    them."""

    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        Exclusion("trainer.optimizer", ("trainer.optimizer_options",), lambda value: True, if_changed=True),
        Exclusion("trainer.epochs", ("trainer.max_steps",)),
        Exclusion(
            "trainer.gradient_checkpointing",
            ("trainer.gradient_checkpointing_every", "trainer.gradient_checkpointing_offload"),
            lambda value: value is False,
        ),
        Exclusion("trainer.precision", ("trainer.adapter_dtype",), lambda value: value in ("bf16", "fp16")),
    )

    optimizer: str = "adamw"
    """The optimizer. ``adamw``, ``adamw_8bit``, ``paged_adamw`` and ``paged_adamw_8bit`` train every parameter; others
    are made for LoRA's factors or for the weights themselves. `loraga recipes optimizers` lists them."""
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the optimizer: ``{name: value}``. Learning rate, betas, epsilon and weight decay are options of
    ``trainer``."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Largest learning rate, which is reached after the warm-up. Null: ``method.learning_rate``, which suits a hidden
    size of 512, times 512 and divided by the model's hidden size."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Number of passes over the training rows; may be a fraction."""
    max_steps: Positive | None = None
    """Number of optimizer steps. If it is given, ``epochs`` has no effect."""
    batch_size: Positive = 32
    """Rows per optimizer step, over all devices and forward passes."""
    micro_batch_size: Positive | None = None
    """The most rows of a forward pass on one device. It changes memory and speed; a step stays the same up to
    rounding. Null: as many as ``max_tokens`` allows."""
    max_tokens: Positive | Literal["auto"] | None = None
    """The most tokens of a forward pass on one device, padding included; a longer row is a pass of its own. A step
    stays the same up to rounding. One process halves it when memory runs out. ``auto``: as many as fit the device's
    memory by the forecast. Null: 8192, or no limit where ``micro_batch_size`` is given."""
    group_by_length: bool = False
    """Make optimizer steps of rows of similar length, which need less padding. The order of rows is less random then,
    so this is another training."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """How the learning rate changes during training. ``constant`` has no warm-up."""
    warmup_ratio: Fraction = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    adam_beta1: Fraction = 0.9
    """Decay of AdamW's first moment."""
    adam_beta2: Fraction = 0.999
    """Decay of AdamW's second moment."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest L2 norm of the gradient; a larger gradient is clipped. 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast of the forward and backward pass. ``auto`` uses it for float16 base models only: a bfloat16 base model
    computes in bfloat16 without it."""
    speed: Literal["auto", "plain"] = "auto"
    """``auto`` decides ``flatten``, ``chunked_loss``, ``adapter_dtype`` and ``kernels`` where they are null: it turns
    on what this model and device allow, and prints what it chose. ``plain`` turns on only what is given."""
    flatten: bool | None = None
    """Put the rows of a forward pass one after another instead of padding them. Every row sees only itself. Null:
    ``speed`` decides."""
    chunked_loss: bool | None = None
    """Compute the loss of a causal language model at labelled tokens alone, a few at a time, instead of all logits at
    once. Null: ``speed`` decides."""
    adapter_dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which adapters compute their products; what trains stays in float32. Under autocast its type counts
    instead. Null: ``speed=auto`` takes bfloat16 on a bfloat16 base, and float32 otherwise."""
    kernels: Literal["torch", "liger"] | None = None
    """Whose kernels compute norms, gates and rotary positions: PyTorch's, or those of Liger Kernel
    (``pip install 'loraga[fast]'``, on a GPU). Null: ``speed`` decides."""
    compile: bool = False
    """Compile every block of the model with torch.compile, which takes minutes at the start."""
    tf32: bool = False
    """Let GPUs multiply float32 matrices in TF32, which keeps ten bits of each entry."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass, which saves memory and takes about a third more time."""
    gradient_checkpointing_every: Positive = 1
    """With ``gradient_checkpointing``: every which block of the model is computed again. 2 saves about half of that
    memory, for half of the extra time."""
    gradient_checkpointing_offload: bool = False
    """With ``gradient_checkpointing``: keep the inputs of blocks that are computed again in the CPU's memory instead of
    the GPU's, until the backward pass needs them. Training alone does so, the estimation of the gradient does not."""
    logging_steps: Positive = 10
    """Steps between two logged values."""
    eval_steps: Positive | None = None
    """Steps between two evaluations. Null evaluates after each epoch."""
    save_steps: Positive | None = None
    """Steps between two checkpoints. Null saves one after each epoch."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Number of checkpoints that are kept; at least 2, so that one is complete while another is written."""
    load_best: bool = False
    """Use the checkpoint of the lowest validation loss at the end, instead of the last one."""
    early_stopping_patience: Positive | None = None
    """Stop after this many evaluations without a lower validation loss. Implies ``load_best``."""
    report_to: Annotated[list[Tracker], AfterValidator(all_different)] = Field(default_factory=list)
    """Services that get the logged values, the configuration of the model and transformers' arguments, through
    transformers' callbacks: ``tensorboard`` writes event files into the run folder, ``wandb``, ``mlflow`` and
    ``trackio`` send to where their environment variables say. Can only be set on the command line, because it sends
    data."""
    dataloader_workers: Annotated[int, Field(ge=0)] = 0
    """Number of processes that prepare batches; 0 prepares them in the main process."""
    report: bool = True
    """Write ``report.html`` into the run's folder at the end: losses, cost, rows and configuration in one file."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Fields of transformers' TrainingArguments that are no options here: ``{name: value}``. They are checked by that
    class and passed on, and what they do together with loraga is untested."""
