"""Every option of loraga: its one spelling, type, unit and bounds.

A composed configuration (YAML and command line) is validated against `Config`. The string under a field is its
documentation, and what `loraga recipes options` prints.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lora_ga_cli.config.combinations import dataset_problems, problems
from lora_ga_cli.files import one_name

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, AfterValidator(one_name)]
"""A text that becomes part of a folder's name."""
Dtype = Literal["float32", "bfloat16", "float16"]
Task = Literal["causal_lm", "seq2seq_lm", "sequence_classification"]
Direction = Literal["ArB2r", "A2rBr", "ArBr", "random"]
Scale = Literal["stable", "unit", "gd", "weight_svd"]
Metric = Literal["loss", "exact_match", "accuracy", "matthews_correlation", "f1", "label_tokens"]
S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """A group of options: immutable, and closed to unknown names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class ModelConfig(Section):
    """The base model and how it is loaded."""

    path: str
    """A model on the hub (``org/name``), a local folder, or ``bundled:tiny_base``."""
    task: Task = "causal_lm"
    """What the model does; decides the class it is loaded with and how rows become examples."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Type of the base's weights in memory. Adapters always train in float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Load the base's linear layers quantized by bitsandbytes, to 4-bit NormalFloat or 8-bit integers. It stays as it
    is; the adapter carries its start."""
    double_quantization: bool = False
    """With ``nf4``: quantize its scales too, which saves about 0.4 bits a weight."""
    shard: bool = False
    """Spread the base's weights over the processes of one run (FSDP2), each of which gathers a block when it computes.
    For a base that one device cannot hold; the adapter carries its start."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    tokenizer: str | None = None
    """A tokenizer other than the model's own: hub name or folder."""
    num_labels: Positive | None = None
    """Classes of a sequence classifier; counted in the training data when null."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository carries. From the command line only."""


class DatasetConfig(Section):
    """Where rows come from, and how one becomes an example.

    Exactly one source is given: ``path`` (hub) or ``train_file`` (local). Exactly one form of a row is given:
    ``prompt`` and ``answer``, or ``messages``, or ``text`` and ``label``, or another one by ``form``.
    """

    path: str | None = None
    """A data set on the hub (``org/name``)."""
    subset: str | None = None
    """The hub data set's configuration name."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    train_split: str = "train"
    """Split of the hub data set to train on."""
    validation_split: str | None = None
    """Split of the hub data set to evaluate on."""
    train_file: str | list[str] | None = None
    """Local file or files: .jsonl, .json, .csv, .tsv or .parquet, the text formats also gzipped (.gz)."""
    validation_file: str | list[str] | None = None
    """Local file or files to evaluate on."""
    validation_fraction: Fraction = 0.0
    """Share of the training rows held out, where there is no validation split or file (0 to below 1)."""
    column_names: list[str] | None = None
    """Names for the columns of a .csv or .tsv file that has no header line."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames columns: ``{new: old}``."""

    keep: dict[str, str] = Field(default_factory=dict)
    """Leaves rows out: ``{column: pattern}``, a regular expression that a row's text must hold somewhere."""
    extract: dict[str, str] = Field(default_factory=dict)
    """Shortens texts: ``{column: pattern}``, a regular expression whose first group becomes the text."""

    form: str | None = None
    """Name of the form in which a row is read. Null: the form whose options are given (``prompt`` and ``answer``, or
    ``messages``, or ``text`` and ``label``)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of a form that is not shipped: ``{name: value}``. The form's file documents them."""
    prompt: str | None = None
    """Template of the part without loss; ``{column}`` inserts a column, ``{{`` is a brace."""
    answer: str | None = None
    """Template of the part that is learned."""
    messages: str | None = None
    """Column with chat messages (``role``, ``content``), rendered by the tokenizer's chat template; the
    assistant's turns are learned."""
    text: str | None = None
    """Template of a text to classify."""
    text_pair: str | None = None
    """Template of a second text, for pairs."""
    label: str | None = None
    """Column with the class: a number from 0, or a name from ``label_names``. With ``prompt`` and ``answer``, where
    ``label_names`` has to be given too, the templates insert its name."""
    label_names: list[str] | None = None
    """Names of the classes, in the order of their numbers. With ``prompt`` and ``answer``: the words that are answers,
    among which ``label_tokens`` of ``eval.metrics`` chooses."""

    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest example, in tokens."""
    max_rows: Positive | None = None
    """Train on the first this many rows (after shuffling, if ``shuffle``)."""
    max_validation_rows: Positive | None = None
    """Evaluate on at most this many rows."""
    shuffle: bool = True
    """Shuffle the training rows, by ``seed``, before ``max_rows`` and ``validation_fraction`` are taken."""
    on_long_row: Literal["error", "skip", "truncate"] = "error"
    """What happens to a row of more than ``max_length`` tokens. Truncation keeps the beginning and is counted."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a malformed row, or one with no token left to learn from. Skipped rows are counted."""

    @property
    def has_validation(self) -> bool:
        """Whether there are rows to evaluate on."""
        return self.validation_file is not None or self.validation_split is not None or self.validation_fraction > 0

    @model_validator(mode="after")
    def _one_source_one_form(self) -> DatasetConfig:
        return _unless(dataset_problems(self), self)


class AdaLoraConfig(Section):
    """How AdaLoRA (arXiv 2303.10512) moves its budget of ranks between layers. Its output is scaled by alpha over the
    initial rank, as PEFT does."""

    initial_rank: Annotated[float, Field(gt=1)] = 1.5
    """Rank that every layer begins with, relative to ``rank``, which is the mean one at the end."""
    warmup: Fraction = 0.1
    """Share of the steps before the first rank is taken away."""
    final: Fraction = 0.3
    """Share of the steps after the last rank is taken away."""
    interval: Positive = 10
    """Steps between two allocations."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Decay of the mean of the importance."""
    beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Decay of the uncertainty of the importance."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the penalty that keeps the factors orthogonal."""


class MethodConfig(Section):
    """A fine-tuning method: which adapter, how it starts, and what trains."""

    name: Name = "lora_ga"
    """What run folders and tables call the method; a file in ``method/`` that says nothing is called as it is."""
    adapter: Literal["none", "lora", "dora", "adalora", "bottleneck", "prefix_embedding", "prefix_layer"] = "lora"
    """``none`` trains weights of the model itself. ``lora``, ``dora`` (arXiv 2402.09353) and ``adalora`` (arXiv
    2303.10512) add a product of low rank to each target. ``bottleneck`` (arXiv 1902.00751): a small network of width
    ``rank`` behind each block's attention and feed-forward layer. ``prefix_embedding`` and ``prefix_layer``: trained
    vectors before every row, at the input or at every layer (LoRA, arXiv 2106.09685, section 5.1)."""
    train: Literal["all", "top_layers", "biases"] = "all"
    """Which weights of the model train with ``adapter=none``: ``top_layers`` are the last ``top_layers`` blocks."""
    top_layers: Positive = 2
    """Blocks that ``train=top_layers`` trains."""
    start: Literal["kaiming", "gaussian", "pissa", "gradient"] = "kaiming"
    """``kaiming``: LoRA's own start (A random, B zero). ``gradient``: LoRA-GA's. ``pissa``: the weight's own leading
    singular vectors (arXiv 2404.02948). ``gaussian``: A and B random. All but the first are taken off again; see
    ``shift``."""
    use_rslora: bool = False
    """Scale the adapter by ``alpha / sqrt(rank)`` instead of ``alpha / rank``."""
    direction: Direction = "ArB2r"
    """Which singular vectors of the gradient start A and B (LoRA-GA, section 3)."""
    scale: Scale = "stable"
    """Size of the factors of ``start=gradient`` and ``gaussian``. ``stable``: ``d_out**0.25 / sqrt(gamma)`` on both."""
    gamma: Annotated[float, Field(gt=0)] = 16.0
    """The constant of ``scale=stable``, without unit."""
    shift: Literal["auto", "weights", "adapter"] = "auto"
    """How the start is taken off again, so that nothing changes at step 0. ``weights``: subtracted from the base's
    weights. ``adapter``: a frozen copy in the adapter, of twice the rank while it trains; the base stays as it is.
    ``auto``: ``weights`` in float32; ``adapter`` in half precision, where a shifted weight rounds too coarsely, on a
    quantized or sharded base, and with ``adapter_dropout``."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """B's learning rate over A's (LoRA+, arXiv 2402.12354)."""
    prefix_length: Positive = 32
    """Trained vectors before a row."""
    adalora: AdaLoraConfig = AdaLoraConfig()

    @property
    def low_rank(self) -> bool:
        """Whether the adapter is a pair of factors A and B on each target, which can start anywhere."""
        return self.adapter in ("lora", "dora")

    @property
    def moved_start(self) -> bool:
        """Whether the adapter starts elsewhere than at zero, and its start is taken off again."""
        return self.start != "kaiming"


class GradientConfig(Section):
    """How the gradient at the start is estimated."""

    estimator: Literal["sketch", "exact"] = "sketch"
    """``sketch``: its leading part, condensed while backpropagation passes, in a few hundred megabytes, for any base.
    ``exact``: the full gradient of each target, accumulated in float32."""
    passes: Annotated[int, Field(ge=1, le=8)] = 1
    """Passes of the sketch over the same rows; each one more projects again on the range found, for a smaller error."""
    samples: Positive = 64
    """Training rows that the gradient is averaged over."""
    micro_batch_size: Positive = 8
    """Rows per forward and backward pass; changes memory, and the result no more than the estimator's own error. Halved
    when memory runs out."""
    capacity: Positive | None = None
    """Singular vectors kept per target; serves every rank up to half of it. Null: at least 32, and twice the rank."""
    dropout: bool = False
    """Keep the model's dropout on while estimating."""
    offload: bool = False
    """Accumulate the exact gradient in CPU memory instead of the model's device."""


class TrainerConfig(Section):
    """The training loop (transformers' Trainer). Defaults are the LoRA-GA paper's where it states them."""

    optimizer: Literal["adamw", "paged_adamw"] = "adamw"
    """``paged_adamw``: bitsandbytes' AdamW, whose moments move to the CPU while a GPU's memory is short (QLoRA)."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_steps: Positive | None = None
    """Optimizer steps; when given, ``epochs`` does not count."""
    batch_size: Positive = 32
    """Rows per optimizer step, over all devices and accumulation steps."""
    micro_batch_size: Positive = 8
    """Rows per forward pass on one device; ``batch_size`` must be a multiple of it times the devices."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Course of the learning rate; ``constant`` has no warm-up."""
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
    """Clip the gradient's L2 norm; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast of forward and backward. ``auto``: none, but for float16 bases; a bfloat16 base computes in bfloat16 by
    itself, and the adapter on it in float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    logging_steps: Positive = 10
    """Steps between two logged points."""
    eval_steps: Positive | None = None
    """Steps between two evaluations; null evaluates after each epoch."""
    save_steps: Positive | None = None
    """Steps between two checkpoints; null saves after each epoch."""
    save_total_limit: Annotated[int, Field(ge=2)] = 2
    """Checkpoints kept (at least 2, so that one is whole while another is written)."""
    load_best: bool = False
    """End with the checkpoint of lowest validation loss instead of the last."""
    early_stopping_patience: Positive | None = None
    """Stop after this many evaluations without a lower validation loss; implies ``load_best``."""
    dataloader_workers: Annotated[int, Field(ge=0)] = 0
    """Processes that prepare batches; 0 uses the main one."""


class JudgeConfig(Section):
    """The model that grades answers, behind any endpoint that speaks OpenAI's chat protocol."""

    base_url: str = "https://api.openai.com/v1"
    """Address of the endpoint. From the command line only: it receives the key."""
    model: str = "gpt-4"
    """Name of the judging model at that endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. From the command line only."""
    prompts: str | None = None
    """File of the judge's prompts, FastChat's ``judge_prompts.jsonl``."""
    references: str | None = None
    """File of the reference answers, FastChat's ``reference_answer/gpt-4.jsonl``."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of the judge's sampling."""
    max_tokens: Positive = 2048
    """Longest judgement, in tokens."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Times that a failed request is sent again: after half a second, then twice as long each time up to 8 s, or when
    the endpoint says."""
    concurrency: Positive = 4
    """Requests under way at a time."""


class EvalConfig(Section):
    """How a run is scored by `loraga eval`."""

    task: Literal["rows", "gsm8k", "humaneval", "mt_bench", "lm_eval"] = "rows"
    """``rows``: ``metrics`` on the data set's validation rows. ``gsm8k``, ``humaneval``, ``mt_bench``: that benchmark.
    ``lm_eval``: ``tasks`` of lm-evaluation-harness."""
    metrics: Annotated[list[Metric], Field(min_length=1)] = ["loss"]
    """For rows. ``loss`` (with perplexity); of generated answers ``exact_match``; of a classifier ``accuracy``,
    ``matthews_correlation``, ``f1``; of label words ``label_tokens``, with the last two."""
    file: str | list[str] | None = None
    """Local file or files to score on instead of the data set's validation rows, or of the benchmark's from the hub;
    with ``lm_eval``, a folder with tasks of your own, which may name code: ``execute_code`` allows it."""
    limit: Positive | None = None
    """Score at most this many rows or problems, the first."""
    batch_size: Positive = 16
    """Rows per forward or generation batch."""
    max_new_tokens: Positive = 256
    """Longest generated answer, in tokens."""
    answer_pattern: str = r"####\s*(.+)"
    """Regular expression whose first group is the answer, in the generation and in the reference."""
    prompt: str | None = None
    """Template around a benchmark's question, with ``{question}``. Null: the benchmark's own; for ``mt_bench`` the
    tokenizer's chat template."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Of sampling benchmark answers; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that hold this probability."""
    samples: Positive = 1
    """Answers per benchmark problem."""
    pass_at: Annotated[list[Positive], Field(min_length=1)] = [1]
    """The k of pass@k (``humaneval``); at most ``samples``."""
    execute_code: bool = False
    """Run the programs that the model writes (``humaneval``), in a sandbox; or, without one, what the tasks in ``file``
    name (``lm_eval``). From the command line only."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that a program may take (``humaneval``)."""
    tasks: list[str] = []
    """Tasks of lm-evaluation-harness (``lm_eval``)."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question (``lm_eval``); null is the task's own number."""
    judge: JudgeConfig = JudgeConfig()


class Config(Section):
    """A whole run."""

    recipe: Name | None = None
    """The recipe this run was composed from; set by ``recipe=NAME``."""
    name: Name | None = None
    """Folder of the run inside ``output_dir``; null derives one from recipe, method, rank and settings."""
    output_dir: str = "runs"
    """Folder that holds run folders."""
    cache_dir: str | None = None
    """Folder of gradient artifacts; null is ``$LORAGA_CACHE`` or ``~/.cache/loraga``."""
    overwrite: bool = False
    """Start again in a run folder that holds a run with other settings (the old one is set aside)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of shuffling, sampling, and every random start."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model lives. ``auto`` takes an accelerator if there is one."""
    rank: Positive = 8
    """Rank of the adapter while it trains."""
    rank_pattern: dict[str, Positive] = {}
    """Ranks of layers that differ from ``rank``, by name or ending: ``{q_proj: 16, v_proj: 4}``. Of the adapters
    ``lora`` and ``dora``."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The adapter's output is scaled by ``alpha / rank``, or ``alpha / sqrt(rank)`` when rank-stabilized."""
    adapter_dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """``all-linear`` (all but the output head), a list of module names or endings, or a regular expression."""
    model: ModelConfig
    dataset: DatasetConfig
    method: MethodConfig = MethodConfig()
    gradient: GradientConfig = GradientConfig()
    trainer: TrainerConfig = TrainerConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def largest_rank(self) -> int:
        """The largest rank that a layer may have."""
        return max([self.rank, *self.rank_pattern.values()])

    @property
    def shift(self) -> Literal["weights", "adapter"]:
        """``method.shift``, with ``auto`` decided."""
        if self.method.shift == "auto":
            # dropout would hit what the adapter adds and not what was subtracted from the base
            movable = self.model.quantization is None and not self.model.shard
            exact = movable and self.model.dtype == "float32" and self.adapter_dropout == 0
            return "weights" if exact else "adapter"
        return self.method.shift

    @model_validator(mode="after")
    def _parts_fit(self) -> Config:
        return _unless(problems(self), self)


def _unless(problems: list[str], section: S) -> S:
    """The section, unless there are problems: then all of them in one error, a line each."""
    if problems:
        raise ValueError("\n".join(problems))
    return section
