"""LoRA training as an ordinary script writes it, with PEFT and transformers' Trainer: what `bench_train.py` compares
with.

    python scripts/plain_training.py SETTINGS.json

The settings are those of `Settings`; `bench_train.py` writes them. Rows are padded to the longest one of their batch.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.data import Sampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


@dataclass(frozen=True)
class Settings:
    """What to train.

    Args:
        model: folder of the base model and its tokenizer.
        rows: JSON lines with ``prompt`` and ``answer``.
        order: the numbers of the rows, in the order in which they are read.
        output: a folder for ``metrics.jsonl`` and ``result.json``.
        autocast: compute in bfloat16 by autocast.
        checkpointing: compute activations again in the backward pass.
    """

    model: str
    rows: str
    order: list[int]
    output: str
    steps: int
    batch_size: int
    micro_batch_size: int
    rank: int
    alpha: float
    learning_rate: float
    logging_steps: int
    autocast: bool
    checkpointing: bool
    seed: int


class InOrder(Sampler[int]):
    """Reads rows in a given order."""

    def __init__(self, order: list[int]):
        self.order = order

    def __iter__(self) -> Any:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)


class OrderedTrainer(Trainer):
    """The Trainer, reading its rows in a given order."""

    order: list[int]

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler[int]:
        return InOrder(self.order)


class Clock(TrainerCallback):
    """Times every step, without what is logged between two, and writes what is logged."""

    def __init__(self, file: Path):
        self.file, self.seconds, self.losses = file, list[float](), list[float]()
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)
        self._began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))
            with self.file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps({"step": state.global_step, "loss": self.losses[-1]}) + "\n")
        self._began = time.perf_counter()


def tokenized(file: str, tokenizer: Any) -> list[dict[str, list[int]]]:
    """Every row: the prompt without loss, the answer, and the end-of-text token."""
    rows = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = prompt + answer
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(prompt) + answer})
    return rows


def train(settings: Settings) -> dict[str, Any]:
    """Trains, and returns seconds of each step, the peak of memory in bytes (None on a CPU), and the last loss."""
    torch.manual_seed(settings.seed)
    cuda = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    base = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.bfloat16, attn_implementation="sdpa")
    if cuda:
        base.to("cuda")
    lora = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    output, accumulation = Path(settings.output), settings.batch_size // settings.micro_batch_size
    clock = Clock(output / "metrics.jsonl")
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=settings.autocast,
        use_cpu=not cuda,
        gradient_checkpointing=settings.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        remove_unused_columns=False,
    )
    trainer = OrderedTrainer(
        model=model,
        args=arguments,
        train_dataset=tokenized(settings.rows, tokenizer),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[clock],
    )
    trainer.order = settings.order
    trainer.train()
    peak: Tensor | int | None = torch.cuda.max_memory_allocated() if cuda else None
    return {"step_seconds": clock.seconds, "peak_memory_bytes": peak, "loss": clock.losses[-1]}


if __name__ == "__main__":
    chosen = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(chosen.output).mkdir(parents=True, exist_ok=True)
    (Path(chosen.output) / "result.json").write_text(json.dumps(train(chosen)), encoding="utf-8")
