"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lora_ga_cli.config.schema import EvalConfig
from lora_ga_cli.evaluation.tasks.base import Benchmark
from lora_ga_cli.evaluation.tasks.gsm8k import Gsm8k
from lora_ga_cli.evaluation.tasks.humaneval import HumanEval
from lora_ga_cli.evaluation.tasks.mt_bench import MtBench

BENCHMARKS: dict[str, Callable[[EvalConfig, Path], Benchmark]] = {
    "gsm8k": lambda options, cache: Gsm8k(options),
    "humaneval": lambda options, cache: HumanEval(options),
    "mt_bench": lambda options, cache: MtBench(options, cache / "judgements"),
}
"""By `EvalConfig.task`; each takes the options, and a folder for what it wants to keep between runs."""
