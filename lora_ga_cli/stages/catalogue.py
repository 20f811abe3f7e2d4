"""The list of methods (what each one is, how many parameters of a model it trains, what it saves), and that of
optimizers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic.fields import FieldInfo

from lora_ga_cli.config.check import check
from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.locations import Locations
from lora_ga_cli.config.options import as_typed, default_of, kind_of
from lora_ga_cli.config.schema import ModelConfig
from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.lora.layers import trained_parameters
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.loading import empty_model, guess_task, quiet
from lora_ga_cli.registry import OPTIMIZERS

CHOICES = {"causal_lm": "causal_lm", "seq2seq_lm": "seq2seq_lm", "sequence_classification": "classifier"}
"""The choice of ``conf/model`` for any model of a task."""
RATE_SOURCE = re.compile(r"^ *learning_rate: \S+ +# (.+)$", re.MULTILINE)
"""The comment behind a method's learning rate, which says where it was measured."""
PAPER = re.compile(r"\s*\(([^()]*arXiv \d{4}\.\d{4,5}[^()]*)\)")


@dataclass(frozen=True)
class Entry:
    """A method, for one model and rank.

    Args:
        summary: what it is, in a sentence: the first one of its file's comment.
        papers: arXiv numbers.
        parameters: how many parameters it trains; None where the model has nothing for it to train.
        learning_rate: the rate that suits it at hidden size 512, and where it was measured; empty where none was.
        result: what it saves, or why it does not go with the model.
    """

    name: str
    summary: str
    papers: list[str]
    parameters: int | None
    learning_rate: str
    result: str


def methods(model: str, rank: int, user_dir: Path | None = None) -> list[Entry]:
    """Every method that can be chosen.

    Args:
        model: a choice of ``conf/model``, a folder or a name on the hub; no weights are loaded.
        user_dir: a folder with the user's choices.

    Raises:
        ModelError: the model cannot be found.
    """
    quiet()
    locations = Locations(user_dir)
    is_choice = model in locations.choices("model")
    task = _task_of(model, user_dir) if is_choice else guess_task(model)
    chosen = [f"model={model}"] if is_choice else [f"model={CHOICES[task]}", f"model.path={model!r}"]
    rows = "dataset=sst2" if task == "sequence_classification" else "dataset=quickstart"
    entries = []
    for name, file in locations.choices("method").items():
        flags = ["--config-dir", str(user_dir)] if user_dir is not None else []
        count, rate = None, ""
        try:
            config = compose([*chosen, rows, f"method={name}", f"rank={rank}", "trainer.learning_rate=1", *flags])
            if config.method.learning_rate is not None:
                source = RATE_SOURCE.search(file.read_text(encoding="utf-8"))
                rate = f"{config.method.learning_rate:g}" + (f" ({source[1]})" if source else "")
            base = empty_model(config.model, config.model.num_labels)
            count = trained_parameters(method_of(config).attach_empty(base))
        except InvalidInput as error:  # the file is wrong, or the method does not go with the model
            result = str(error).splitlines()[0]
        except TargetError as error:
            result = f"not for this model: {str(error).splitlines()[0]}"
        else:
            output = method_of(config).output
            merging = "" if output.mergeable else " (cannot be merged)"
            result = f"{output.label}, loaded by {output.loads_in}{merging}"
        text = _comment(file)
        summary = PAPER.sub("", text.partition(". ")[0])
        entries.append(Entry(name, summary, re.findall(r"\d{4}\.\d{5}", text), count, rate, result))
    return entries


@dataclass(frozen=True)
class OptimizerOption:
    """An option of an optimizer, which ``trainer.optimizer_options`` may contain.

    Args:
        kind: the values that it takes.
        default: as it is typed.
        doc: its meaning.
    """

    name: str
    kind: str
    default: str
    doc: str


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer.

    Args:
        summary: what it is: its class's docstring, without arXiv numbers.
        papers: arXiv numbers.
        options: what only this optimizer has.
    """

    name: str
    summary: str
    papers: list[str]
    options: list[OptimizerOption]


def optimizers() -> list[OptimizerEntry]:
    """Every optimizer that ``trainer.optimizer`` can choose."""
    entries = []
    for name in OPTIMIZERS.names():
        text = " ".join((OPTIMIZERS[name].__doc__ or "").split()).rstrip(".")
        options = [
            OptimizerOption(option, kind_of(field.annotation), as_typed(default_of(field)), _in_one_line(field))
            for option, field in OPTIMIZERS[name].Options.model_fields.items()
        ]
        summary = PAPER.sub(_without_number, text)
        entries.append(OptimizerEntry(name, summary, re.findall(r"\d{4}\.\d{5}", text), options))
    return entries


def _in_one_line(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("``", "`")


def _without_number(found: re.Match[str]) -> str:
    """What stands beside an arXiv number in parentheses: another name of the method."""
    name = re.sub(r",? ?arXiv [\d.]+", "", found[1])
    return f" ({name})" if name else ""


def _task_of(choice: str, user_dir: Path | None) -> str:
    """The task that a choice of ``conf/model``, or what it builds on, states; else the default of `ModelConfig`."""
    flags = ["--config-dir", str(user_dir)] if user_dir is not None else []
    sources, faults = check([f"model={choice}", *flags], complete=False)
    if faults:
        raise InvalidInput(faults)
    return str(sources.options_of("model", choice).get("task", ModelConfig.model_fields["task"].default))


def _comment(file: Path) -> str:
    """The comment at the top of a file."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @"):
            lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines).rstrip(".")
