"""Measures training beside an ordinary script of PEFT and transformers' Trainer, one lever after another, in one run.

    python scripts/bench_train.py --shapes 1b              a GPU: Llama shapes of 1.1B weights
    python scripts/bench_train.py --shapes 7b              a GPU: Llama-2-7B's shapes, with gradient checkpointing
    python scripts/bench_train.py --shapes 1b --gpus 4     also on 4 GPUs, with copies of the base and with shards of it
    python scripts/bench_train.py --shapes tiny            a CPU: 2 layers of width 64, to try the script out

The base has random bfloat16 weights, the same for every row of the table, and so are the examples and their order: 32
in a step, rank 8, all linear layers. Lengths follow GSM8K's (250 tokens in the mean, log-normal with σ 0.45, of which
45 % are the prompt), and tokens are drawn at random, with frequencies that fall with their number. With --rows, the
questions and answers of a file are used instead.

Every row of the table is a process of its own: ``peft`` is `plain_training.py`, the others are ``loraga train``, where
each lever is added to those before. Tokens per second count no padding, and leave the first steps out. Memory is the
peak of PyTorch's tensors on the GPU, initialization included. The loss is the mean of the last steps that were logged.
``first step`` is the time from the start of the process to the end of its first step.

``same``: the ordinary script with the batches and types of loraga's ``plain``; the difference of their times is what
loraga's own code costs.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from plain_training import Settings

SCRIPTS = Path(__file__).parent
BATCH, MICRO_BATCH, RANK, ALPHA, RATE, SEED = 32, 8, 8, 16, 2e-4, 42
WARM = 5
"""The first steps, whose time does not count."""
GIB = 2**30
ROOM = 16 * GIB
SHAPES: dict[str, dict[str, int]] = {
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4},
    "7b": {},
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Args:
        text: what the table calls it.
        overrides: loraga's options; None where the ordinary script runs.
        gpus: how many processes train.
    """

    text: str
    overrides: list[str] | None
    gpus: int = 1


@dataclass(frozen=True)
class Measured:
    """What one process measured. Memory is in bytes, and None on a CPU."""

    row: str
    tokens_per_second: float
    step_seconds: float
    peak_memory_bytes: int | None
    loss: float
    first_step_seconds: float


def table_rows(max_tokens: int, gpus: int) -> dict[str, Row]:
    """Every row, by the name that --levers takes."""
    rows = {"peft": Row("plain PEFT + Trainer", None), "same": Row("the same, batches and types of loraga", None)}
    levers = {
        "plain": ("loraga, speed=plain", [f"trainer.micro_batch_size={MICRO_BATCH}"]),
        "passes": ("+ passes by tokens", ["trainer.micro_batch_size=null", f"trainer.max_tokens={max_tokens}"]),
        "flatten": ("+ flattened rows", ["trainer.flatten=true"]),
        "chunks": ("+ loss in chunks", ["trainer.chunked_loss=true"]),
        "bf16": ("+ adapters in bfloat16", ["trainer.adapter_dtype=bfloat16"]),
        "liger": ("+ Liger's kernels", ["trainer.kernels=liger"]),
        "compile": ("+ compiled blocks, in place of Liger's", ["trainer.kernels=torch", "trainer.compile=true"]),
    }
    overrides = ["method=lora", "trainer.speed=plain"]
    for name, (text, added) in levers.items():
        replaced = {item.partition("=")[0] for item in added}
        overrides = [item for item in overrides if item.partition("=")[0] not in replaced] + added
        rows[name] = Row(text, overrides)
    defaults = ["trainer.micro_batch_size=null", f"trainer.max_tokens={max_tokens}"]
    rows["auto"] = Row("loraga, speed=auto", ["method=lora", *defaults])
    offload = ["trainer.gradient_checkpointing=true", "trainer.gradient_checkpointing_offload=true"]
    rows["offload"] = Row("the same, checkpoints in the CPU's memory", ["method=lora", *defaults, *offload])
    rows["lora_ga"] = Row("loraga, speed=auto, LoRA-GA", ["method=lora_ga", *defaults])
    if gpus > 1:
        rows["ddp"] = Row(f"speed=auto, {gpus} GPUs", ["method=lora", *defaults], gpus)
        rows["shard"] = Row(f"speed=auto, {gpus} GPUs, shards", ["method=lora", *defaults, "model.shard=true"], gpus)
    return rows


class Bench:
    """The model, the rows and the processes.

    Args:
        folder: where all files are written; a folder in memory loads large models faster.
        extra: options for all of loraga's rows.
        deadline: the end of the last process, on the clock `time.monotonic`.
    """

    def __init__(self, folder: Path, options: argparse.Namespace, deadline: float):
        self.folder, self.options, self.deadline = folder, options, deadline
        self.model, self.data = folder / "model", folder / "rows.jsonl"
        # a divisor, so that every loss of the ordinary script is the mean of as many steps, up to the last one
        self.logging_steps = max(count for count in range(1, 11) if options.steps % count == 0)
        self.lengths = list[int]()

    def prepare(self) -> None:
        """Writes the base with its tokenizer, and the examples."""
        vocabulary = write_model(self.model, self.options.shapes, self.options.tokenizer)
        count = self.options.steps * BATCH * self.options.gpus
        file = self.options.rows
        texts = read_texts(file, count) if file else synthetic_texts(count, vocabulary)
        lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in texts]
        self.data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        for prompt, answer in texts:
            parts = tokenizer([prompt, answer], add_special_tokens=False)["input_ids"]
            self.lengths.append(len(parts[0]) + len(parts[1]) + 1)

    def steps(self, gpus: int) -> list[list[int]]:
        """The examples of every step, in loraga's order."""
        from lora_ga_cli.training.order import Order

        return Order(self.lengths, BATCH * gpus, SEED).steps(0, self.options.steps)

    def by_length(self, step: Sequence[int]) -> list[int]:
        """The examples of a step in the order of loraga's padded passes of 8 rows."""
        from lora_ga_cli.training.passes import Limits, divide

        (passes,) = divide(step, self.lengths, Limits(MICRO_BATCH, None, padded=True))
        return [row for chosen in passes for row in chosen]

    def measure(self, name: str, row: Row) -> Measured:
        """Runs a process.

        Raises:
            RuntimeError: it failed, with the end of what it said; or the time is over.
        """
        output = self.folder / "runs" / name
        output.parent.mkdir(exist_ok=True)
        command = self._plain(name, output) if row.overrides is None else self._loraga(name, row)
        first = self._run(command, output / "metrics.jsonl", row.gpus)
        if row.overrides is None:
            result = json.loads((output / "result.json").read_text(encoding="utf-8"))
            loss = result["loss"]
        else:
            result = json.loads((output / "cost.json").read_text(encoding="utf-8"))
            loss = self._last_loss(output / "metrics.jsonl")
        warm = min(WARM, self.options.steps - 1)
        seconds = result["step_seconds"][warm:]
        tokens = sum(self.lengths[item] for step in self.steps(row.gpus)[warm:] for item in step)
        shutil.rmtree(output)
        per_step = sum(seconds) / len(seconds)
        return Measured(name, tokens / sum(seconds), per_step, result["peak_memory_bytes"], loss, first)

    def _last_loss(self, metrics: Path) -> float:
        """The mean loss of the last ``logging_steps`` steps, of which loraga may log some apart."""
        points = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        total, logged = 0.0, 0
        for point in points:
            if "loss" in point:
                steps = point["step"] - logged
                logged = point["step"]
                if logged > self.options.steps - self.logging_steps:
                    total += steps * point["loss"]
        return total / self.logging_steps

    def _plain(self, name: str, output: Path) -> list[str]:
        order = [item for step in self.steps(1) for item in (self.by_length(step) if name == "same" else step)]
        settings = Settings(
            model=str(self.model),
            rows=str(self.data),
            order=order,
            output=str(output),
            steps=self.options.steps,
            batch_size=BATCH,
            micro_batch_size=MICRO_BATCH,
            rank=RANK,
            alpha=ALPHA,
            learning_rate=RATE,
            logging_steps=self.logging_steps,
            autocast=name != "same",
            checkpointing=self.options.checkpointing,
            seed=SEED,
        )
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(asdict(settings)), encoding="utf-8")
        return [sys.executable, str(SCRIPTS / "plain_training.py"), str(file)]

    def _loraga(self, name: str, row: Row) -> list[str]:
        assert row.overrides is not None
        launch = [sys.executable, "-m"]
        if row.gpus > 1:
            launch += ["torch.distributed.run", f"--nproc-per-node={row.gpus}", "--master-port=29511", "-m"]
        overrides = [
            "model=causal_lm",
            f"model.path={self.model}",
            "model.dtype=bfloat16",
            "dataset=jsonl",
            f"dataset.train_file={self.data}",
            "dataset.validation_fraction=0",
            "dataset.shuffle=false",
            f"output_dir={self.folder / 'runs'}",
            f"name={name}",
            f"cache_dir={self.folder / 'cache'}",
            f"seed={SEED}",
            f"rank={RANK}",
            f"alpha={ALPHA}",
            f"trainer.learning_rate={RATE}",
            f"trainer.max_steps={self.options.steps}",
            f"trainer.batch_size={BATCH * row.gpus}",
            f"trainer.logging_steps={self.logging_steps}",
            f"trainer.save_steps={self.options.steps}",
            f"trainer.gradient_checkpointing={str(self.options.checkpointing).lower()}",
        ]
        return [*launch, "lora_ga_cli", "train", *overrides, *row.overrides, *self.options.set]

    def _run(self, command: list[str], metrics: Path, gpus: int) -> float:
        """Waits for a process. Returns the seconds until it logged its first step."""
        environment = {"HF_HUB_OFFLINE": "1", **os.environ}
        paths = [str(SCRIPTS.parent), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        if gpus == 1:  # the Trainer of the ordinary script would use all
            environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        log = self.folder / "log.txt"
        began, first = time.monotonic(), 0.0
        with log.open("w", encoding="utf-8") as opened:
            process = subprocess.Popen(
                command, stdout=opened, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            while process.poll() is None:
                if not first and metrics.exists() and metrics.stat().st_size:
                    first = time.monotonic() - began
                if time.monotonic() > self.deadline:
                    stop(process)
                    raise RuntimeError("the time is over")
                time.sleep(0.02)
        text = log.read_text(encoding="utf-8")
        if self.options.verbose:
            print(text, flush=True)
        if process.returncode != 0:
            raise RuntimeError(" / ".join(text.strip().splitlines()[-4:]) or f"exit code {process.returncode}")
        return first


def stop(process: subprocess.Popen[Any]) -> None:
    """Ends a process that `Bench` started, and its children."""
    process.terminate()  # torchrun passes it on
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_model(folder: Path, shapes: str, tokenizer: str | None) -> int:
    """A base with random weights and its tokenizer. Returns the number of different tokens in rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shapes], max_position_embeddings=4096, pad_token_id=0)
    if tokenizer is None:
        write_tokenizer(folder, config.vocab_size)
    else:
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    torch.manual_seed(SEED)
    transformers.utils.logging.disable_progress_bar()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="5GB")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return int(config.vocab_size)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer whose words are numbers, a token each, so that a text states its tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words = special | {f"t{number}": number for number in range(len(special), vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)


def synthetic_texts(count: int, vocabulary: int) -> list[tuple[str, str]]:
    """Prompts and answers whose lengths in tokens follow GSM8K's; the same for the same count."""
    draw, mean, spread = np.random.default_rng(SEED), 250, 0.45
    lengths = np.exp(draw.normal(np.log(mean) - spread**2 / 2, spread, count)).round().clip(16, 1023).astype(int)
    shares = draw.beta(0.45 * 40, 0.55 * 40, count)
    frequencies = 1 / np.arange(1, vocabulary - 2)
    numbers = 3 + draw.choice(vocabulary - 3, size=int(lengths.sum()), p=frequencies / frequencies.sum())
    texts, begin = [], 0
    for length, share in zip(lengths, shares, strict=True):
        words = [f"t{number}" for number in numbers[begin : begin + length]]
        begin += length
        of_prompt = int(np.clip(round(length * share), 1, length - 1))
        texts.append((" ".join(words[:of_prompt]), " ".join(words[of_prompt:])))
    return texts


def read_texts(file: str, count: int) -> list[tuple[str, str]]:
    """Questions and answers of a file of JSON lines, from its beginning again after the last one."""
    opened: Callable[..., Any] = gzip.open if file.endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(f"{row['question']}\n", row["answer"]) for row in (rows[number % len(rows)] for number in range(count))]


def roomy_folder() -> str | None:
    """A place in memory, if there is one with room for the largest base; None for the usual place of such files."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > ROOM else None


def line(row: Row, now: Measured, first: Measured) -> str:
    """A line of the table, with the ratios to its first row."""
    memory = "– | –"
    if now.peak_memory_bytes and first.peak_memory_bytes:
        ratio = now.peak_memory_bytes / first.peak_memory_bytes
        memory = f"{now.peak_memory_bytes / GIB:.1f} GiB | {ratio:.2f}"
    speed = f"{now.tokens_per_second:,.0f} | {now.tokens_per_second / first.tokens_per_second:.2f}"
    return (
        f"| {row.text} | {speed} | {now.step_seconds * 1000:.0f} ms | {memory} | {now.loss:.4f} | "
        f"{now.first_step_seconds:.0f} s |"
    )


def say_ratios(done: dict[str, Measured], gpus: int) -> None:
    """Ratios between rows of the table, where both were measured."""
    if {"plain", "same"} <= done.keys():
        share = done["plain"].step_seconds / done["same"].step_seconds - 1
        print(f"loraga's own code in a step, over the same Trainer, batches and types: {share:+.1%}")
    if {"auto", "lora_ga"} <= done.keys():
        print(f"a step of LoRA-GA over one of LoRA: {done['lora_ga'].step_seconds / done['auto'].step_seconds:.3f}")
    for name in ("ddp", "shard"):
        if {"auto", name} <= done.keys():
            share = done[name].tokens_per_second / done["auto"].tokens_per_second / gpus
            print(f"scaling efficiency, {name}, {gpus} GPUs ({BATCH} examples for each): {share:.0%}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="1b")
    parser.add_argument("--levers", help="rows of the table, separated by commas (default: all but compile)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--max-tokens", type=int, default=8192, help="tokens of a pass")
    parser.add_argument("--set", action="append", default=[], help="another option for all of loraga's rows")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="default: with 7b")
    parser.add_argument("--rows", help="JSON lines with question and answer (.gz), instead of random tokens")
    parser.add_argument("--tokenizer", help="folder of the tokenizer for --rows")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--folder", help="for the model and the runs (default: in memory, removed at the end)")
    parser.add_argument("--json", help="a file for the results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--verbose", action="store_true", help="print what every process says")
    options = parser.parse_args()
    if bool(options.rows) != bool(options.tokenizer):
        parser.error("--rows and --tokenizer go together")
    if options.checkpointing is None:
        options.checkpointing = options.shapes == "7b"
    rows = table_rows(options.max_tokens, options.gpus)
    options.levers = options.levers.split(",") if options.levers else [name for name in rows if name != "compile"]
    if unknown := set(options.levers) - rows.keys():
        parser.error(f"--levers: no {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    return options


def run(options: argparse.Namespace, folder: Path, deadline: float) -> None:
    bench, rows = Bench(folder, options, deadline), table_rows(options.max_tokens, options.gpus)
    began = time.monotonic()
    bench.prepare()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    mean = sum(bench.lengths) / len(bench.lengths)
    print(
        f"\n{options.shapes}: {device}; torch {torch.__version__}; rows of {mean:.0f} tokens, {BATCH} a step", end="; "
    )
    print("with gradient checkpointing" if options.checkpointing else "no gradient checkpointing", end="; ")
    print(f"prepared in {time.monotonic() - began:.0f} s")
    print("| | tokens/s | × | step | peak | × | loss | first step |\n|---|---|---|---|---|---|---|---|", flush=True)
    done = dict[str, Measured]()
    for name in options.levers:
        try:
            done[name] = bench.measure(name, rows[name])
        except RuntimeError as error:
            print(f"| {rows[name].text} | failed: {error} |", flush=True)
            if time.monotonic() > deadline:
                break
            continue
        print(line(rows[name], done[name], next(iter(done.values()))), flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps([asdict(item) for item in done.values()], indent=1))
    print()
    say_ratios(done, options.gpus)


def main() -> None:
    options = parse()
    deadline = time.monotonic() + options.seconds
    if options.folder:
        folder = Path(options.folder)
        folder.mkdir(parents=True, exist_ok=True)
        run(options, folder, deadline)
    else:
        with tempfile.TemporaryDirectory(prefix="bench_train_", dir=roomy_folder()) as temporary:
            run(options, Path(temporary), deadline)


if __name__ == "__main__":
    main()
