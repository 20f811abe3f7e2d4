"""Every option of loraga: its one spelling, type, unit and bounds.

A composed configuration (YAML and command line) is validated against `Config`. The string under a field is its
documentation, and what `loraga recipes options` prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from lora_ga_cli.config.exclusions import Exclusion, exclusive
from lora_ga_cli.config.rules import dataset_problems, mix_source_problems, problems, unused_shared
from lora_ga_cli.errors import suggest
from lora_ga_cli.files import one_name
from lora_ga_cli.registry import ESTIMATORS, METHODS, OPTIMIZERS, TASKS, Registry

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, AfterValidator(one_name)]
"""A text that is used in the name of a folder."""
DataFiles = str | list[str] | dict[str, str | list[str]]
Dtype = Literal["float32", "bfloat16", "float16"]
Task = Literal["causal_lm", "seq2seq_lm", "sequence_classification"]
S = TypeVar("S", bound="Section")
Token = Annotated[str, Field(min_length=1)]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def _all_different(names: list[str]) -> list[str]:
    repeated = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if repeated is not None:
        raise ValueError(f"names {repeated!r} twice")
    return names


VALIDATION_SPLIT = "dataset.validation_split"
OF_A_HUB_SET = (
    "dataset.path",
    "dataset.subset",
    "dataset.revision",
    "dataset.data_files",
    "dataset.streaming",
    "dataset.shuffle_buffer",
)
PROMPT_TEMPLATES = ("dataset.prompt", "dataset.answer")
TEXT_TEMPLATES = ("dataset.text", "dataset.text_pair")
READ_BY = (
    *PROMPT_TEMPLATES,
    *TEXT_TEMPLATES,
    "dataset.messages",
    "dataset.label",
    "dataset.label_names",
    "dataset.form",
)


def _with_line_ends(text: str) -> str:
    # on a command line, a person writes a line end so; Hydra hands the two characters on
    return re.sub(r"(\\?)\\n", lambda found: r"\n" if found[1] else "\n", text)


TemplateText = Annotated[str, AfterValidator(_with_line_ends)]
"""A text with ``{column}`` fields, in which ``\\n`` is a line end, and ``\\\\n`` a backslash and an n."""


class Section(BaseModel):
    """A group of options: immutable, and closed to unknown names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    exclusions: ClassVar[tuple[Exclusion, ...]] = ()
    """Options that switch others off, which a file of lower precedence sets."""

    @classmethod
    def all_exclusions(cls) -> list[Exclusion]:
        """The exclusions of the section and of those that it derives from."""
        declared = [vars(parent).get("exclusions", ()) for parent in cls.__mro__]
        return list(dict.fromkeys(exclusion for exclusions in declared for exclusion in exclusions))


@dataclass(frozen=True)
class TypedSection:
    """A section whose options depend on one of them, which names a registered class; the class has the options.

    Args:
        key: the option that names the class.
        registry: the classes. Each has ``Options``, a subclass of `Section`, and ``check(config)``, which yields what
            does not go together.
        default: the name that holds where none is given.
    """

    name: str
    key: str
    registry: Registry[Any]
    default: str

    @property
    def decider(self) -> tuple[str, str]:
        """The path of the option that names the class."""
        return self.name, self.key

    def options_of(self, type_name: object) -> type[Section] | None:
        """The class of the options of a type; None if there is no such type."""
        found = self.registry.find(type_name) if isinstance(type_name, str) else None
        return found.Options if found is not None else None

    def validate(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        """Validates a mapping by the class that its type names."""
        if not isinstance(value, Mapping):
            return handler(value)
        type_name = value.get(self.key, self.default)
        options = self.options_of(type_name)
        if options is None:
            hint = self.registry.hint_for(str(type_name))
            error = PydanticCustomError(
                "unknown_type", "names no {what}; {hint}", {"what": self.registry.what, "hint": hint}
            )
            details = InitErrorDetails(type=error, loc=(self.key,), input=type_name)
            raise ValidationError.from_exception_data(self.name, [details])
        return options.model_validate({**value, self.key: type_name})


METHOD = TypedSection("method", "type", METHODS, "lora_ga")
EVAL = TypedSection("eval", "task", TASKS, "rows")
WITHOUT_TYPES = {"types": False}
"""The context of a validation that imports no class of a method or task."""
WITHOUT_RULES = {"rules": False}
"""The context of a validation that looks at each option alone."""
TYPED_SECTIONS = {section.name: section for section in (METHOD, EVAL)}


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
    new_tokens: Annotated[list[Token], AfterValidator(_all_different)] = []
    """Tokens that the tokenizer gets in addition, such as ``<think>``. The embeddings grow by as many rows, each of
    which begins as the mean of all others. The new rows train, and with them those of an output head that is not tied
    to the embeddings."""
    num_labels: Positive | None = None
    """Number of classes of a sequence classifier. Null counts them in the training data."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. Can only be set on the command line."""


class MixSource(Section):
    """One of several sources of training rows: files, or a data set on the hub."""

    train_file: str | list[str] | None = None
    """As ``dataset.train_file``."""
    path: str | None = None
    """As ``dataset.path``."""
    subset: str | None = None
    """As ``dataset.subset``."""
    revision: str | None = None
    """As ``dataset.revision``."""
    data_files: DataFiles | None = None
    """As ``dataset.data_files``."""
    train_split: str = "train"
    """As ``dataset.train_split``."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often an epoch sees each row: 2 is every row twice, 0.5 is half of the rows."""

    @model_validator(mode="after")
    def _one_source(self) -> MixSource:
        return _unless(mix_source_problems(self), self)


class DatasetConfig(Section):
    """Where rows come from, and how one becomes an example.

    Exactly one source is given: ``path`` (hub), ``train_file`` (local) or ``mix`` (several). How a row is read is found
    from the columns (``format``), or given: by ``prompt`` and ``answer``, or ``messages``, or ``text``, or ``text`` and
    ``label``, or another ``form``.
    """

    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        Exclusion("dataset.train_file", (*OF_A_HUB_SET, "dataset.mix", VALIDATION_SPLIT)),
        Exclusion("dataset.path", ("dataset.train_file", "dataset.mix", "dataset.column_names")),
        Exclusion("dataset.mix", (*OF_A_HUB_SET, "dataset.train_file", VALIDATION_SPLIT)),
        *exclusive("dataset.validation_file", VALIDATION_SPLIT, "dataset.validation_fraction"),
        Exclusion("dataset.messages", (*TEXT_TEMPLATES, *PROMPT_TEMPLATES, "dataset.label")),
        *(Exclusion(option, (*TEXT_TEMPLATES, "dataset.messages")) for option in PROMPT_TEMPLATES),
        Exclusion("dataset.text", (*PROMPT_TEMPLATES, "dataset.messages")),
        Exclusion("dataset.format", READ_BY, lambda value: value != "auto"),
        Exclusion("dataset.form", ("dataset.format",)),
    )

    path: str | None = None
    """A data set on the hub (``org/name``)."""
    subset: str | None = None
    """The hub data set's configuration name."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    data_files: DataFiles | None = None
    """Files of the hub data set to read, instead of those that it names: a path or pattern in it, a list of them, or
    ``{split: files}``. Handed to ``datasets.load_dataset``."""
    streaming: bool = False
    """Fetch only the rows of the hub data set that are needed, and not its complete files: the first ``max_rows`` (or
    as many as ``trainer.max_steps`` uses), and the rows held out. They are then shuffled as any rows are."""
    shuffle_buffer: Annotated[int, Field(ge=0)] = 0
    """With ``streaming``: draw the rows at random, by ``seed``, from a buffer of this many, and read the files in
    random order. 0 takes the first rows of the data set."""
    train_split: str = "train"
    """Split of the hub data set to train on."""
    validation_split: str | None = None
    """Split of the hub data set to evaluate on."""
    train_file: str | list[str] | None = None
    """Local file or files: .jsonl, .json, .csv, .tsv or .parquet, the text formats also compressed (.gz, .zst). A
    pattern (``data/*.jsonl``) stands for all files that it matches, and ``hf://datasets/ORG/NAME/FILE`` for a single
    file on the hub."""
    mix: Annotated[list[MixSource], Field(min_length=1)] | None = None
    """Several sources with weights: ``[{train_file: a.jsonl, weight: 2}, {path: org/name}]``. A source has
    ``train_file``, or ``path`` with ``subset``, ``revision``, ``data_files`` and ``train_split``. A weight says how
    often an epoch sees each row of its source: 2 is every row twice, 0.5 is half of the rows, drawn by ``seed``. Rows
    are held out before weights count."""
    validation_file: str | list[str] | None = None
    """Local file or files to evaluate on."""
    validation_fraction: Fraction = 0.0
    """Share of the training rows held out, where there is no validation split or file (0 to below 1)."""
    column_names: list[str] | None = None
    """Names for the columns of a .csv or .tsv file that has no header line."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames columns: ``{new: old}``."""

    keep: dict[str, str] = Field(default_factory=dict)
    """Leaves rows out: ``{column: pattern}``, a regular expression that a row's text must contain."""
    extract: dict[str, str] = Field(default_factory=dict)
    """Shortens texts: ``{column: pattern}``, a regular expression whose first group becomes the text."""

    format: str = "auto"
    """How the rows are written: ``alpaca``, ``messages``, ``prompt_answer``, ``prompt_completion``, ``sharegpt``,
    ``text``, ``text_label``, or one of a user's file. ``auto`` recognizes it by the columns of the first rows, where no
    option below says how a row is read."""
    form: str | None = None
    """Name of the form in which a row is read. Null: the form whose options are given (``prompt`` and ``answer``, or
    ``messages``, or ``text``, or ``text`` and ``label``)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a form that is not shipped: ``{name: value}``. The form's file documents them."""
    prompt: TemplateText | None = None
    """Template of the part without loss; ``{column}`` inserts a column, ``{{`` is a brace, and ``\\n`` a line end. The
    section ``{?column}…{/column}`` is left out of a row where the column is absent, null or empty."""
    answer: TemplateText | None = None
    """Template of the part that is learned."""
    messages: str | None = None
    """Column with chat messages (``role``, ``content``, or ``from``, ``value``; a list or its JSON text),
    rendered by the tokenizer's chat template. The assistant's turns are learned, but those with ``weight: 0`` or
    ``train: false``."""
    tools: str | None = None
    """With ``messages``: column with the tools that the assistant may call (a list or its JSON text), which the chat
    template is given. Null: the column ``tools`` where there is one."""
    learn_turns: Literal["all", "last"] | None = None
    """With ``messages``: which turns of the assistant are learned. Null: ``all``."""
    chat_template: str | None = None
    """With ``messages``: local Jinja file whose chat template replaces the tokenizer's. It is saved with the result."""
    text: TemplateText | None = None
    """Template of a text to classify; without ``label``, of a text that is learned completely."""
    text_pair: TemplateText | None = None
    """Template of a second text, for pairs."""
    label: str | None = None
    """Column with the class: a name, or a number from 0. With ``prompt`` and ``answer``, the templates insert its
    name."""
    label_names: list[str] | None = None
    """Names of the classes, in the order of their numbers. Null: those of the data set on the hub; or the names in the
    column, sorted; or numbers from 0. With ``prompt`` and ``answer``: the words that are answers, among which
    ``label_tokens`` of ``eval.metrics`` chooses."""

    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest example, in tokens. The default becomes the positions of the model where these are fewer."""
    max_rows: Positive | None = None
    """Train on the first this many rows (after shuffling, if ``shuffle``)."""
    max_validation_rows: Positive | None = None
    """Evaluate on at most this many rows."""
    shuffle: bool = True
    """Shuffle the training rows, by ``seed``, before ``max_rows`` and ``validation_fraction`` are taken."""
    on_long_row: Literal["error", "skip", "truncate"] = "error"
    """What happens to a row of more than ``max_length`` tokens. Truncation keeps the beginning and is counted."""
    packing: bool = False
    """Join short training rows into packs of at most ``max_length`` tokens. ``trainer.batch_size`` and epochs count
    packs then, so this is another training. Rows of a pack do not see each other."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a malformed row, or one with no token left to learn from. Skipped rows are counted."""

    allow_empty_answers: bool = False
    """Learn empty answers and empty turns of the assistant, which teach the model to answer nothing. By default such
    a row is malformed."""

    @property
    def files(self) -> dict[str, str | list[str]]:
        """The files and patterns that are given, by option."""
        files = {"dataset.train_file": self.train_file, "dataset.validation_file": self.validation_file}
        mixed = {f"dataset.mix[{number}].train_file": part.train_file for number, part in enumerate(self.mix or [])}
        return {option: some for option, some in {**files, **mixed}.items() if some is not None}

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to evaluate on."""
        return self.validation_file is not None or self.validation_split is not None or self.validation_fraction > 0

    @model_validator(mode="after")
    def _one_source_one_form(self, info: ValidationInfo) -> DatasetConfig:
        return self if info.context == WITHOUT_RULES else _unless(dataset_problems(self), self)


class MethodOptions(Section):
    """A fine-tuning method. Its class, which ``type`` names, has the other options."""

    type: str = METHOD.default
    """The kind of method. It decides which other ``method`` options there are."""
    name: Name = Field(default_factory=lambda values: values["type"])
    """What run folders and tables call the method. Default: the name of its file in ``method/``."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """The learning rate that suits this method, for a base model of hidden size 512. It is used where
    ``trainer.learning_rate`` is null."""


def _registered_estimator(name: str) -> str:
    if ESTIMATORS.find(name) is None:
        raise ValueError(f"names no gradient estimator; {suggest(name, ESTIMATORS.names())}")
    return name


class GradientConfig(Section):
    """How the gradient of the base model is estimated before training."""

    estimator: Literal["sketch", "exact"] | Annotated[str, AfterValidator(_registered_estimator)] = "sketch"
    """``sketch`` estimates the gradient's leading singular vectors during backpropagation, in a few hundred megabytes
    for a base model of any size. ``exact`` accumulates the full gradient of each target layer in float32.
    Another name is that of an estimator which a user's file registers."""
    passes: Annotated[int, Field(ge=1, le=8)] = 1
    """Passes of the sketch over the same rows. Each pass after the first is a power iteration, which makes the error
    smaller."""
    samples: Positive = 64
    """Number of training rows that the gradient is averaged over."""
    max_tokens: Positive | None = None
    """The most tokens of a forward and backward pass, padding included. Null: no limit but ``micro_batch_size``."""
    micro_batch_size: Positive = 8
    """Rows per forward and backward pass. It changes the memory that is needed; the result changes by no more than the
    estimator's error. It is halved when memory runs out."""
    capacity: Positive | None = None
    """Singular vectors that are stored for each target layer. They serve every rank up to half of this number. Null:
    twice the largest rank that a layer may get, and at least 32."""
    dropout: bool = False
    """Keep the model's dropout active during the estimation."""
    offload: bool = False
    """Accumulate the gradient of ``exact`` in CPU memory instead of on the model's device."""


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
    report_to: Annotated[list[Tracker], AfterValidator(_all_different)] = []
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


class EndpointOptions(Section):
    """A server that generates the answers in place of the model in this process. It speaks OpenAI's protocol."""

    base_url: str | None = None
    """Address of the server, such as ``http://localhost:8000/v1``. Null loads the model and generates here. Can only be
    set on the command line, because the server receives the key."""
    model: str | None = None
    """The server's name of the model or adapter. Null: the name of what is scored, which for a run is its folder's."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server on this machine needs none. Can only be set on the command
    line."""
    chat: bool = False
    """Send a conversation as messages, around which the server puts its own chat template. Without it, the server is
    sent the complete prompt, with the very tokens that would be generated from here."""
    retries: Annotated[int, Field(ge=0)] = 6
    """How often a failed request is sent again: after half a second, then twice as long each time up to 8 s, or when
    the server says."""
    concurrency: Positive = 32
    """Requests that are under way at the same time."""


class EvalOptions(Section):
    """How a run is scored by `loraga eval`. The class of the task, which ``task`` names, has the other options."""

    task: str = EVAL.default
    """What is scored. It decides which other ``eval`` options there are."""
    file: str | list[str] | None = None
    """Local file or files to score on, instead of the data set's validation rows or the benchmark's files on the
    hub."""
    limit: Positive | None = None
    """Score only the first rows or problems, at most this many; a row may become several examples."""
    batch_size: Positive = 16
    """Rows per forward pass or generation batch."""
    endpoint: EndpointOptions = EndpointOptions()


class Config(Section):
    """A complete run."""

    recipe: Name | None = None
    """The recipe that this run was composed from; set by ``recipe=NAME``."""
    name: Name | None = None
    """Name of the run's folder inside ``output_dir``. Null makes one from recipe, method, rank and a hash of the
    settings."""
    output_dir: str = "runs"
    """Folder that run folders are written to."""
    cache_dir: str | None = None
    """Folder that gradients and tokenized rows are stored in. Null means ``$LORAGA_CACHE`` or ``~/.cache/loraga``."""
    overwrite: bool = False
    """Replace a run with other settings in the same folder. The old run folder is renamed and kept."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of shuffling, sampling, and everything else that is drawn at random."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device of the model. ``auto`` uses an accelerator if there is one."""
    rank: Positive = 64
    """Rank of the adapter during training."""
    rank_pattern: dict[str, Positive] = {}
    """Ranks of layers that differ from ``rank``, by name or ending: ``{q_proj: 16, v_proj: 4}``."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's output is multiplied by ``alpha / rank``, with ``method.use_rslora`` by ``alpha / sqrt(rank)``."""
    adapter_dropout: Fraction = 0.0
    """Probability of dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """The layers that get an adapter: ``all-linear`` (all linear layers but the output head), a list of module names or
    endings of names, or a regular expression."""
    target_parameters: list[str] | None = None
    """Weights that are no linear layers of their own and get an adapter, as in PEFT: full names or endings of names,
    such as ``experts.down_proj``. Of experts, each one has an adapter of rank ``rank``. Null: with
    ``target_modules=all-linear`` all experts, where the method can adapt them, else none. ``[]`` leaves them out."""
    model: ModelConfig
    dataset: DatasetConfig
    method: Annotated[SerializeAsAny[MethodOptions], WrapValidator(METHOD.validate)] = Field({}, validate_default=True)  # type: ignore[assignment]
    gradient: GradientConfig = GradientConfig()
    trainer: TrainerConfig = TrainerConfig()
    eval: Annotated[SerializeAsAny[EvalOptions], WrapValidator(EVAL.validate)] = Field({}, validate_default=True)  # type: ignore[assignment]

    @property
    def shared_uses(self) -> frozenset[str]:
        """The options for all adapters (``rank``, ``alpha``, ``target_modules``, …) that the method uses."""
        uses: frozenset[str] = METHODS[self.method.type].shared_options(self)
        return uses

    @property
    def largest_rank(self) -> int:
        """The largest rank that a layer may have."""
        return max([self.rank, *self.rank_pattern.values()])

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Config:
        if info.context == WITHOUT_RULES:
            return self
        if info.context == WITHOUT_TYPES:
            return _unless(problems(self), self)
        by_type = [
            problem
            for section in TYPED_SECTIONS.values()
            for problem in section.registry[getattr(getattr(self, section.name), section.key)].check(self)
        ]
        return _unless([*problems(self), *unused_shared(self, self.shared_uses), *by_type, *_of_optimizer(self)], self)


def _of_optimizer(config: Config) -> list[str]:
    """Everything that is wrong with the choice of the optimizer and with its options."""
    name, given = config.trainer.optimizer, config.trainer.optimizer_options
    optimizer = OPTIMIZERS.find(name)
    if optimizer is None:
        return [f"trainer.optimizer={name} names no optimizer; {OPTIMIZERS.hint_for(name)}"]
    known: dict[str, Any] = optimizer.Options.model_fields
    unknown = [option for option in given if option not in known]
    where = "trainer.optimizer_options"
    if unknown:
        has = f"{name} has {', '.join(known)}" if known else f"{name} has no options"
        return [f"{where}: no option {option!r}; {suggest(option, known) or has}" for option in unknown]
    try:
        optimizer.Options.model_validate(given)
    except ValidationError as error:
        return [f"{where}.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return list(optimizer.check(config))


def _unless(problems: list[str], section: S) -> S:
    """The section, unless there are problems: then all of them in one error, a line each."""
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))  # two rules may find the same one
    return section
