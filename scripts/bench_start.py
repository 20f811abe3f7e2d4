"""Measures how long a run takes until its first optimizer step, beside a script written by hand with PEFT and Trainer.

    python scripts/bench_start.py                 the bundled base
    python scripts/bench_start.py --random        a Llama of 30 million random parameters
    python scripts/bench_start.py --first         every run with an empty cache

Both train LoRA on the rows of ``recipe=quickstart``, with the same rank, targets, batches and evaluation settings, each
in a process of its own that ends with the first step. They take turns. Shown are the medians of the time since the
process was started and of its user CPU time, and the ratio of loraga's to the script's. The first round fills caches
and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONTESTANTS = ("loraga", "script")


def main() -> None:
    """Runs the contestants in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--random", action="store_true", help="a random Llama of 30 million parameters")
    parser.add_argument("--first", action="store_true", help="an empty cache for every run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--base", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        until_first_step(options.child, options.base, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = random_base(folder / "base") if options.random else "bundled:tiny_base"
        measured: dict[str, list[dict[str, float]]] = {contestant: [] for contestant in CONTESTANTS}
        for turn in range(options.rounds + 1):
            for contestant in CONTESTANTS:
                cache = folder / (f"cache{turn}" if options.first else "cache")
                result = start(contestant, base, folder / f"{contestant}{turn}", cache)
                print(f"round {turn}: {contestant} {result['seconds']:.2f} s, user {result['user']:.2f} s", flush=True)
                if turn:
                    measured[contestant].append(result)
    for what in ("seconds", "user"):
        medians = {name: statistics.median(item[what] for item in items) for name, items in measured.items()}
        ratio = medians["loraga"] / medians["script"]
        shown = ", ".join(f"{name} {value:.2f} s" for name, value in medians.items())
        print(f"{'time to the first step' if what == 'seconds' else 'user CPU time'}: {shown}, ratio {ratio:.2f}")


def start(contestant: str, base: str, folder: Path, cache: Path) -> dict[str, float]:
    """Runs one contestant in a new process until its first step; returns ``seconds`` and ``user`` CPU seconds."""
    folder.mkdir()
    command = [sys.executable, __file__, "--child", contestant, "--base", base, "--folder", str(folder)]
    environment = os.environ | {
        "LORAGA_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "BENCH_BEGAN": repr(time.time()),
    }
    output = subprocess.run(command, env=environment, capture_output=True, text=True)
    if output.returncode:
        raise SystemExit(f"{contestant} failed:\n{output.stdout}\n{output.stderr}")
    result: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return result


def until_first_step(contestant: str, base: str, folder: Path) -> None:
    """Trains, and ends this process as soon as any optimizer has made a step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def stop(*_: Any) -> None:
        seconds = time.time() - float(os.environ["BENCH_BEGAN"])
        print("\n" + json.dumps({"seconds": seconds, "user": os.times().user}), flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(stop)
    (train_loraga if contestant == "loraga" else train_script)(base, folder)
    raise SystemExit("there was no step")


def train_loraga(base: str, folder: Path) -> None:
    os.chdir(folder)
    sys.argv = ["loraga", "train", "recipe=quickstart", "method=lora", f"model.path={base}", "device=cpu"]
    from lora_ga_cli.cli.app import run

    run()


def train_script(base: str, folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    data = Path(__file__).parents[1] / "lora_ga_cli" / "assets"
    path = str(data / base.removeprefix("bundled:"))
    tokenizer = AutoTokenizer.from_pretrained(path)

    def rows(file: str) -> list[dict[str, list[int]]]:
        read = [json.loads(line) for line in (data / "quickstart" / file).read_text().splitlines()]
        prompts = tokenizer([f"Question: {row['question']}\nAnswer: " for row in read])["input_ids"]
        answers = tokenizer([row["answer"] for row in read], add_special_tokens=False)["input_ids"]
        return [
            {
                "input_ids": [*prompt, *answer, tokenizer.eos_token_id],
                "attention_mask": [1] * (len(prompt) + len(answer) + 1),
                "labels": [*[-100] * len(prompt), *answer, tokenizer.eos_token_id],
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    train, validation = rows("train.jsonl"), rows("validation.jsonl")
    base_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model = get_peft_model(base_model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        str(folder),
        learning_rate=1e-3,
        max_steps=150,
        per_device_train_batch_size=32,
        eval_strategy="steps",
        eval_steps=50,
        save_steps=50,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    trainer = Trainer(model, arguments, collator, train_dataset=train, eval_dataset=validation)  # type: ignore[arg-type]
    trainer.train()


def random_base(folder: Path) -> str:
    """Saves a Llama of about 30 million random parameters, with the bundled base's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from lora_ga_cli.paths import resolve_path

    tokenizer = AutoTokenizer.from_pretrained(str(resolve_path("bundled:tiny_base")))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=9,
        num_attention_heads=8,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
