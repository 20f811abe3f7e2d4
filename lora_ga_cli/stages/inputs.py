"""What every stage loads first: the tokenizer, the rows and the model's configuration, but no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_ga_cli import distributed, garbage
from lora_ga_cli.config.row_forms import is_complete, row_form
from lora_ga_cli.config.schema import Config, DatasetConfig
from lora_ga_cli.data import Data, Split, load_data, load_file_split
from lora_ga_cli.data.chat_template import with_chat_template
from lora_ga_cli.data.ends import Ends
from lora_ga_cli.data.examples.base import Form
from lora_ga_cli.data.local import listed, same_file
from lora_ga_cli.data.store import RowStore
from lora_ga_cli.disk import folder_problem
from lora_ga_cli.errors import DataError, Fault, InvalidInput, system_fault
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.generation import stop_also_at
from lora_ga_cli.model.loading import (
    empty_model,
    identify,
    load_config,
    load_model,
    load_tokenizer,
    max_positions,
    pick_device,
    quiet,
    vocabulary_size,
)
from lora_ga_cli.model.probe import text_batch
from lora_ga_cli.model.speed import speed_of
from lora_ga_cli.model.stored import check_stored, dequantized_kind
from lora_ga_cli.model.vocabulary import Vocabulary, vocabulary_of
from lora_ga_cli.model.written import check_model
from lora_ga_cli.paths import cache_root, resolve_path, shared_cache
from lora_ga_cli.remembered_digests import drop_damaged
from lora_ga_cli.report.console import step, warn
from lora_ga_cli.stages.speed import check_speed, speed_up
from lora_ga_cli.training.order import Order, order_of

Collator = Callable[[Sequence[Mapping[str, Any]]], dict[str, torch.Tensor]]
PROBE_ROWS = 2


@dataclass(frozen=True)
class Inputs:
    """A configuration with everything that is loaded for it, except weights."""

    config: Config
    device: torch.device
    model_config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: Data

    @property
    def num_labels(self) -> int | None:
        """Classes of a sequence classifier; None for other tasks."""
        if self.config.model.task != "sequence_classification":
            return None
        names = self.data.label_names
        return self.config.model.num_labels or (len(names) if names else self.model_config.num_labels)

    @property
    def train(self) -> Split:
        assert self.data.train is not None
        return self.data.train

    @cached_property
    def order(self) -> Order:
        """The order in which the run reads its training rows."""
        return order_of(self.config, self.train.rows)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the complete run."""
        return self.order.total_steps(self.config)

    @cached_property
    def ends(self) -> Ends:
        """What ends an answer of the data set's rows."""
        if (split := self.data.train or self.data.validation) is not None:
            return split.ends
        config = self.config
        # where no row was read, the form may not be known
        form = row_form(config.dataset, config.model.task) if is_complete(config.dataset) else Form
        ends: Ends = form.ends(config.dataset, self.tokenizer)
        return ends

    @property
    def collator(self) -> Collator:
        """Makes padded batches of rows."""
        return self._form.collate

    def collator_for(self, model: nn.Module) -> Collator:
        """Makes batches of rows as they suit a model: one after another where it takes them so, else padded."""
        return self._form.flatten if speed_of(model).flatten else self._form.collate

    @property
    def _form(self) -> Form:
        return (self.data.validation or self.train).form

    def probe_batch(self) -> dict[str, Any]:
        """A batch of the first rows, on which two forms of the model are compared; of a fixed text if no rows are
        loaded."""
        split = self.data.validation or self.data.train
        if split is None:
            return text_batch(self.tokenizer, self.config.model.task)
        rows = split.rows
        return self.collator([rows[index] for index in range(min(PROBE_ROWS, len(rows)))])

    def load_model(self, *, to_train: bool = False) -> PreTrainedModel:
        """The original base model. A new classifier head is drawn from the run's seed, the same every time.

        Args:
            to_train: with what makes training faster or smaller, see `speed_up`.
        """
        torch.manual_seed(self.config.seed)
        tokenizer = self.tokenizer
        model = load_model(
            self.config.model,
            self.device,
            self.num_labels,
            label_names=self.data.label_names,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            shards=distributed.count() if self.config.model.shard else 1,
            vocabulary=self.vocabulary,
        )
        stop_also_at(model, self.ends.tokens)
        if to_train:
            speed = speed_up(model, self.config, self.device)
            if text := speed.text:
                step("speed", text)
        return model

    def empty_model(self) -> PreTrainedModel:
        return empty_model(self.config.model, self.num_labels, self.vocabulary)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens, and which of them are new to the base."""
        return vocabulary_of(self.tokenizer, self.config.model.new_tokens)

    @property
    def grown_rows(self) -> int | None:
        """The rows of the embeddings, where new tokens made them grow."""
        rows: int = self.model_config.get_text_config().vocab_size
        return self.vocabulary.size if self.config.model.new_tokens and self.vocabulary.size > rows else None


def base_identity(config: Config) -> dict[str, str]:
    """The base model's identity by content; see `identify`."""
    memo = cache_root(config.cache_dir) / "digests.json"
    drop_damaged(memo, warn)
    return identify(config.model, memo)


def join_processes(config: Config) -> None:
    """Connects the processes that train together, before anything is loaded.

    Raises:
        InvalidInput: the base is to be in shards, and this process is alone; or as `check_speed`.
    """
    if config.model.shard and distributed.count() == 1:
        launch = "torchrun --nproc-per-node 2 -m lora_ga_cli …"
        raise InvalidInput([Fault("configuration", "model.shard=true needs several processes", launch)])
    device = pick_device(config.device)
    check_speed(config, device)
    distributed.join(cpu=device.type == "cpu")


def check_folders(config: Config, options: Sequence[str] = ("output_dir", "cache_dir")) -> None:
    """Checks that the folders that options name can be written, before anything is loaded.

    Raises:
        InvalidInput: a folder cannot be made or written, or its disk is full.
    """
    folders = {"output_dir": resolve_path(config.output_dir), "cache_dir": cache_root(config.cache_dir)}
    problems = {option: folder_problem(folders[option]) for option in options}
    faults = [system_fault(option, folders[option], error) for option, error in problems.items() if error is not None]
    if faults:
        raise InvalidInput(faults)


def prepare_inputs(
    config: Config,
    splits: Sequence[str] = ("train", "validation"),
    *,
    label_names: list[str] | None = None,
    to_train: bool = True,
) -> Inputs:
    """Loads and checks everything except weights, and prints how many rows there are.

    Args:
        splits: the splits of the data set to load. For none, the data set is not looked at, unless the classes of a
            classifier have to be counted in it.
        label_names: the names of a classifier's classes, where a run has settled them.
        to_train: False for a model that is scored only.

    Raises:
        ModelError, DataError
        InvalidInput: as `check_stored`.
    """
    garbage.imported()
    quiet()
    if (shared := shared_cache(config.cache_dir)) is not None:
        step("cache", f"{shared} may only be read: what is not there is stored in {cache_root(config.cache_dir)}")
    check_model(resolve_path(config.model.path), weights=False)
    device = pick_device(config.device)
    model_config = load_config(config.model)
    check_stored(config.model, model_config, to_train=to_train)
    tokenizer = with_chat_template(config.dataset, load_tokenizer(config.model))
    config = _within_positions(config, positions := _positions(config, model_config))
    data = Data(None, None, label_names, config.dataset)
    if splits or (config.model.task == "sequence_classification" and label_names is None):
        data = load_data(
            _with_rows_to_stream(config),
            task=config.model.task,
            tokenizer=tokenizer,
            seed=config.seed,
            max_positions=positions,
            vocabulary=_rows_of_embedding(config, model_config, tokenizer),
            splits=tuple(splits),
            num_labels=config.model.num_labels,
            store=_row_store(config),
        )
    for note in data.notes:
        step("data", note)
    for split in (data.train, data.validation):
        if split is not None:
            _say(split)
    if data.train is not None:
        for text in data.train.form.warnings(data.train.form.config, tokenizer):
            warn(text)
        if data.validation is not None:
            _warn_of_same_file(config)
    if (kind := dequantized_kind(model_config)) is not None:
        step("model", f"the weights in {kind} of its files are dequantized to {config.model.dtype}")
    # what was found in the rows; how many of a stream the steps need is no option of the user's
    dataset = data.config.model_copy(update={"max_rows": config.dataset.max_rows})
    return Inputs(config.model_copy(update={"dataset": dataset}), device, model_config, tokenizer, data)


def _warn_of_same_file(config: Config) -> None:
    """Warns where a file to evaluate on is one that is trained on."""
    given = config.dataset.files
    validation = listed(given.pop("dataset.validation_file", []))
    train = [file for files in given.values() for file in listed(files)]
    if (same := same_file(validation, train)) is not None:
        what = "is" if same[0] == same[1] else f"has the content of {same[1]}, which is"
        warn(f"{same[0]} {what} trained on: the validation loss says nothing about other rows")


def _rows_of_embedding(config: Config, model_config: PreTrainedConfig, tokenizer: Any) -> int | None:
    """The tokens that the model has rows for, with those that ``model.new_tokens`` adds."""
    rows = vocabulary_size(model_config)
    if rows is None or not config.model.new_tokens:
        return rows
    return max(rows, vocabulary_of(tokenizer, config.model.new_tokens).size)


def _with_rows_to_stream(config: Config) -> DatasetConfig:
    """The data set with ``max_rows``, where it is streamed and the steps alone say how many rows are needed."""
    dataset, steps = config.dataset, config.trainer.max_steps
    if not dataset.streaming or dataset.max_rows is not None or steps is None:
        return dataset
    return dataset.model_copy(update={"max_rows": steps * config.trainer.batch_size})


def _say(split: Split) -> None:
    step("data", split.summary())
    for note in split.notes:
        step("data", f"{split.name}: {note}")


def _row_store(config: Config) -> RowStore:
    store = RowStore(cache_root(config.cache_dir), warn, shared_cache(config.cache_dir))
    drop_damaged(store.memo, warn)
    return store


def _positions(config: Config, model_config: PreTrainedConfig) -> int | None:
    """The longest possible row, in tokens: trained vectors before it take some of the model's positions."""
    positions = max_positions(model_config)
    return None if positions is None else positions - method_of(config).leading_positions


def _within_positions(config: Config, positions: int | None) -> Config:
    """The configuration whose ``dataset.max_length`` is the model's number of positions, where it is the default and
    the model has fewer. A row that is longer is treated as any row that is too long."""
    default, given = DatasetConfig.model_fields["max_length"].default, config.dataset.max_length
    if positions is None or given != default or given <= positions:
        return config
    step("data", f"dataset.max_length={positions}, the positions of this model (the default is {default})")
    return config.model_copy(update={"dataset": config.dataset.model_copy(update={"max_length": positions})})


def evaluation_split(inputs: Inputs) -> Split:
    """The rows to score: at most ``eval.limit`` of ``eval.file``, else the data set's validation rows as loaded.

    Raises:
        DataError: there are none.
    """
    options, config = inputs.config.eval, inputs.config
    split = inputs.data.validation
    if options.file is not None:
        files = [options.file] if isinstance(options.file, str) else options.file
        split = load_file_split(
            config.dataset,
            files,
            task=config.model.task,
            tokenizer=inputs.tokenizer,
            max_positions=_positions(config, inputs.model_config),
            vocabulary=_rows_of_embedding(config, inputs.model_config, inputs.tokenizer),
            max_rows=options.limit,
            label_names=inputs.data.label_names,
            store=_row_store(config),
        )
        _say(split)
    if split is None:
        fault = Fault(
            "configuration", "there are no rows to evaluate on", "eval.file=FILE, or dataset.validation_fraction=0.05"
        )
        raise DataError([fault])
    return split
