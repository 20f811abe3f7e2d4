"""Takes a tiny random model of each family through a run, and writes what happened into the table of docs/models.md.

    python scripts/check_models.py              # all families; writes the table
    python scripts/check_models.py T5 "GPT-2"   # some of them; writes their rows
    python scripts/check_models.py --check      # compares with the table, and writes nothing

Each model is estimated and trained for three steps with LoRA-GA and with LoRA, in float32 on the CPU. The adapter is
loaded by PEFT alone, and the merged folder by transformers alone; the logits of both must be those of the trained
model. A family that is refused says why. Any other error ends the script with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from tiny_models import CAUSAL, CLASSIFIER, FAMILIES, Family, save_tiny
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.config.compose import compose
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import UserError
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.model.flattening import use_flattening
from lora_ga_cli.model.loading import AUTO_CLASS
from lora_ga_cli.model.probe import probe_logits, relative_difference
from lora_ga_cli.model.unadaptable import unadaptable
from lora_ga_cli.model.unsupported import Unsupported
from lora_ga_cli.report import console
from lora_ga_cli.stages.estimate import estimate
from lora_ga_cli.stages.forecast import forecast
from lora_ga_cli.stages.inputs import prepare_inputs
from lora_ga_cli.stages.merge import MergeOptions, merge
from lora_ga_cli.stages.train import train
from lora_ga_cli.stages.trained import load_trained
from lora_ga_cli.training.run_folder import RunFolder

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
TOLERANCE = 1e-5
"""The largest relative difference of logits between two ways to load what was trained."""
METHODS = ("lora_ga", "lora")
CLASSES = 3
OK, REFUSED, FAULT, NOTHING = "ok", "refused", "FAULT", "–"


@dataclass
class Row:
    """A line of the table; the fields are its columns."""

    family: str
    task: str
    estimate: str = NOTHING
    lora_ga: str = NOTHING
    lora: str = NOTHING
    peft: str = NOTHING
    merge: str = NOTHING
    flattened: str = NOTHING
    notes: str = ""

    @property
    def line(self) -> str:
        return "| " + " | ".join(astuple(self)) + " |"

    @property
    def has_fault(self) -> bool:
        return FAULT in astuple(self)


HEADINGS = (
    "family",
    "`model.task`",
    "estimate",
    "LoRA-GA",
    "LoRA",
    "loads in PEFT alone",
    "merged",
    "flattened rows",
    "left out, and other notes",
)


def check_family(family: Family, folder: Path, methods: Sequence[str] = METHODS) -> Row:
    """A family's row.

    Args:
        folder: an empty folder for its model, runs and cache.
        methods: of `METHODS`.
    """
    row, notes = Row(family.name, f"`{family.task}`"), list[str]()
    step = "estimate"
    try:
        save_tiny(family, folder / "base")
        rows = write_rows(folder / "rows.jsonl")
        config = configured(family, folder, rows, "lora_ga")
        forecast(config, "train")
        estimate(prepare_inputs(config, splits=("train",)))
        row.estimate = OK
        for method in methods:
            step = method
            config = configured(family, folder, rows, method)
            run = train(config)
            setattr(row, method, OK)
            step = "peft"
            peft = compare(family, folder, config, run)
            step = "merge"
            compare_merged(family, config, run)
            notes += [note for note in notes_on(peft, run) if note not in notes]
        row.peft = row.merge = OK
        row.flattened = flattening(family, folder)
    except UserError as error:
        setattr(row, step, REFUSED if error.exit_code == 2 else FAULT)
        notes.append(str(error).splitlines()[0])
    except Exception as error:
        setattr(row, step, FAULT)
        notes.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
    row.notes = "; ".join(notes).replace(str(folder), "FOLDER").replace("|", "\\|")
    return row


def write_rows(file: Path) -> Path:
    """Sums, as prompt and answer and as a text with a class."""
    draw = random.Random(0)
    with file.open("w", encoding="utf-8") as lines:
        for _ in range(40):
            a, b = draw.randrange(50), draw.randrange(50)
            row = {"prompt": f"{a} + {b} = ", "answer": str(a + b), "text": f"{a} and {b}", "label": (a + b) % CLASSES}
            lines.write(json.dumps(row) + "\n")
    return file


def configured(family: Family, folder: Path, rows: Path, method: str) -> Config:
    """A run of three steps."""
    classifier = family.task == CLASSIFIER
    return compose(
        [
            f"model={'classifier' if classifier else family.task}",
            f"dataset={'classification' if classifier else 'jsonl'}",
            f"model.path={folder / 'base'}",
            "model.dtype=float32",
            f"dataset.train_file={rows}",
            "dataset.max_length=64",
            "rank=4",
            "gradient.samples=16",
            "trainer.max_steps=3",
            "trainer.batch_size=8",
            "trainer.learning_rate=1e-2",
            "device=cpu",
            f"method={method}",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / 'runs'}",
        ]
    )


def compare(family: Family, folder: Path, config: Config, run: RunFolder) -> PeftModel:
    """Loads the adapter with PEFT alone, and insists on the logits of the trained model.

    The run itself has compared them with those of the model in memory.
    """
    inputs = prepare_inputs(config)
    expected = probe_logits(load_trained(inputs, run), inputs.probe_batch())
    classes = {"num_labels": CLASSES} if family.task == CLASSIFIER else {}
    base = AUTO_CLASS[family.task].from_pretrained(folder / "base", dtype=torch.float32, **classes)
    peft: Any = PeftModel.from_pretrained(base, str(run.path)).eval()
    actual = probe_logits(peft, inputs.probe_batch())
    refuse_difference(max(run.manifest["saved_difference"], relative_difference(actual, expected)), "PEFT alone")
    return peft


def compare_merged(family: Family, config: Config, run: RunFolder) -> None:
    """Merges, loads the folder with transformers alone, and insists on the logits of the trained model."""
    merged = merge(run, config, MergeOptions())
    inputs = prepare_inputs(config)
    expected = probe_logits(load_trained(inputs, run), inputs.probe_batch())
    plain = AUTO_CLASS[family.task].from_pretrained(merged, dtype=torch.float32).eval()
    refuse_difference(relative_difference(probe_logits(plain, inputs.probe_batch()), expected), "the merged folder")


def refuse_difference(difference: float, where: str) -> None:
    if not difference <= TOLERANCE:
        raise AssertionError(f"{where} computes other logits than the trained model, by {difference:.0e}")


def notes_on(peft: PeftModel, run: RunFolder) -> list[str]:
    """What of the base is not adapted, and what begins in another way."""
    adapted = any(isinstance(module, ParamWrapper) for module in peft.modules())
    base: Any = peft.unload()
    reasons = unadaptable(base)
    notes = [
        f"{endings(name for name in reasons if reasons[name] == reason)} not adapted: {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]
    init = next(run.path.rglob("init.safetensors"), None)
    if init is not None:
        factors = LoraInit.load(init).factors
        if plain := [name for name, (_, b0) in factors.items() if not b0.any()]:
            notes.append(f"{endings(plain)} begin as LoRA does with LoRA-GA")
    if not adapted and (sizes := sizes_of_stacks(base)):
        share = sum(sizes.values()) / sum(parameter.numel() for parameter in base.parameters())
        notes.append(f"{endings(sizes)} not adapted: they are no layers; {share:.0%} of the parameters")
    return notes


def endings(names: Iterable[str]) -> str:
    """The different last two parts of names, such as ``mlp.gate``."""
    return ", ".join(dict.fromkeys("`" + ".".join(name.split(".")[-2:]) + "`" for name in names))


def sizes_of_stacks(model: nn.Module) -> dict[str, int]:
    """The sizes of parameters with three dimensions, by full name: weights of experts, or of heads of attention."""
    return {
        f"{module_name}.{name}": parameter.numel()
        for module_name, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if sum(size > 1 for size in parameter.shape) == 3 and not isinstance(module, nn.Conv1d)
    }


def flattening(family: Family, folder: Path) -> str:
    """Whether rows go through the model one after another, without padding, kept apart by a mask, on a CPU."""
    if family.task != CAUSAL:
        return NOTHING
    model: PreTrainedModel = AUTO_CLASS[family.task].from_pretrained(folder / "base", dtype=torch.float32)
    try:
        use_flattening(model.eval(), torch.device("cpu"))
    except Unsupported as reason:
        return f"no: {reason}"
    return OK


def table_of(rows: Sequence[str]) -> str:
    return "\n".join(["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS), *rows])


def stored_lines(page: str) -> dict[str, str]:
    """The lines of the table by family, as they stand on the page."""
    between = page.partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in between.splitlines() if line.startswith("| ")][1:]
    return {line.split("|")[1].strip(): line for line in lines}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="families of the table; all without any")
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    options = parser.parse_args(arguments)
    by_name = {family.name: family for family in FAMILIES}
    if unknown := [name for name in options.names if name not in by_name]:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(by_name)}")
    torch.set_num_threads(1)
    page = PAGE.read_text(encoding="utf-8")
    lines, faults, changed = stored_lines(page), 0, 0
    for name in options.names or by_name:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, console.quiet():
            row = check_family(by_name[name], Path(folder))
        print(f"{row.line} {time.perf_counter() - began:.0f} s", flush=True)
        faults += row.has_fault
        changed += lines.get(name) != row.line
        lines[name] = row.line
    if options.check:
        print(f"{changed} rows differ from {PAGE.name}" if changed else f"{PAGE.name} says the same")
        return 1 if changed or faults else 0
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    table = table_of([lines[name] for name in by_name if name in lines])
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
