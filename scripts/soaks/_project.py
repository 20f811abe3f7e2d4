"""A small project to make faults in: a random base, rows, and commands on them that take a second or less."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_ga_cli.cli.app import main

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
ROWS = 40


@dataclass(frozen=True)
class Done:
    """What a command did.

    Args:
        text: everything that it printed, with any run of spaces and line breaks as one space.
        lines: the same, line by line.
    """

    code: int
    text: str
    lines: tuple[str, ...] = ()


def make_base(folder: Path) -> None:
    """Writes a random model of one layer, and a tokenizer with one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL.values(), *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in folder.iterdir():
        os.utime(file, (1, 1))  # digests of files that have just changed are not remembered


def make_rows(file: Path) -> None:
    """Writes sums as prompt and answer."""
    draw = random.Random(0)
    pairs = [(draw.randrange(50), draw.randrange(50)) for _ in range(ROWS)]
    rows = [{"prompt": f"{a}+{b}=", "answer": f"#### {a + b}"} for a, b in pairs]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.utime(file, (1, 1))


def make_problems(file: Path, added: int) -> None:
    """Writes questions of GSM8K's form; their solutions are off by ``added``."""
    rows = [{"question": f"{a}+{a}=", "answer": f"#### {2 * a + added}"} for a in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def options(folder: Path) -> list[str]:
    """The options of a short training on the base and the rows in a folder; the run is ``runs/mine``."""
    return [
        "model=causal_lm",
        f"model.path={folder / 'base'}",
        "model.dtype=float32",
        "dataset=jsonl",
        f"dataset.train_file={folder / 'rows.jsonl'}",
        "dataset.max_length=32",
        "dataset.validation_fraction=0.2",
        "rank=2",
        "gradient.samples=8",
        "trainer.max_steps=6",
        "trainer.batch_size=4",
        "trainer.micro_batch_size=4",
        "trainer.save_steps=2",
        "trainer.eval_steps=2",
        "trainer.logging_steps=1",
        "trainer.learning_rate=1e-2",
        "device=cpu",
        "cache_dir=cache",
        "name=mine",
    ]


def loraga(*words: str) -> Done:
    """Runs a command in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main(words)
    return Done(code, " ".join(printed.getvalue().split()), tuple(printed.getvalue().splitlines()))


def must(*words: str) -> Done:
    """Runs a command that has to succeed.

    Raises:
        RuntimeError
    """
    done = loraga(*words)
    if done.code:
        raise RuntimeError(f"loraga {' '.join(words)} ended with {done.code}: {done.text}")
    return done


def train_until(saved: int, words: Sequence[str]) -> None:
    """Trains up to the checkpoint of this number, and stops as if the program had been killed behind it."""
    from lora_ga_cli.errors import TrainingError
    from lora_ga_cli.training import checkpoint_trainer

    mark, count = checkpoint_trainer.mark_complete, 0

    def marking(*arguments: Any) -> None:
        nonlocal count
        mark(*arguments)
        count += 1
        if count == saved:
            raise TrainingError("stopped here")

    with mock.patch.object(checkpoint_trainer, "mark_complete", marking):
        done = loraga("train", *words)
    if "stopped here" not in done.text:
        raise RuntimeError(done.text)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Works in a folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """One thread, which is the fastest for tiny products and always adds in one order; empty figures; no reports."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            mock.patch("lora_ga_cli.report.figures._save", lambda figure, file, title: file.touch()),
            mock.patch("lora_ga_cli.report.html.page.write_beside", return_value=None),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


def files_below(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The names of the files below a folder that fit a pattern, in order."""
    found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return sorted(str(file.relative_to(folder)) for file in found if file.stat().st_size)


@contextlib.contextmanager
def resource_limit(what: int, most: int) -> Iterator[None]:
    """Lets this process have no more of something (``resource.RLIMIT_…``) than a number of bytes."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)
