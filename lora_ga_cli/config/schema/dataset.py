"""The section ``dataset``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from lora_ga_cli.config.exclusions import Exclusion, exclusive
from lora_ga_cli.config.rules import dataset_problems, mix_source_problems
from lora_ga_cli.config.schema.section import Section, unless
from lora_ga_cli.config.schema.typed import WITHOUT_RULES
from lora_ga_cli.config.schema.values import DataFiles, Fraction, Positive, TemplateText

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
        return unless(mix_source_problems(self), self)


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
        return self if info.context == WITHOUT_RULES else unless(dataset_problems(self), self)
