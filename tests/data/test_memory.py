"""The memory of a process that reads and tokenizes a file does not grow with the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MB = 10**6
PROGRAM = """
import json, sys, threading, time
from pathlib import Path

from transformers import AutoTokenizer

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import load_data
from lora_ga_cli.data.store import RowStore
from lora_ga_cli.paths import ASSETS

small, large, cache = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / "tiny_base"))


def load(file):
    config = DatasetConfig(train_file=file, prompt="{q}", answer="{a}", keep={"q": "7"})
    data = load_data(config, task="causal_lm", tokenizer=tokenizer, seed=0, store=RowStore(Path(cache)))
    return len(data.train.rows)


def memory():
    # pages of mapped files do not count: the system takes them back when it needs room
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


load(small)
before = peak = memory()
finished = threading.Event()


def watch():
    global peak
    while not finished.wait(0.01):
        peak = max(peak, memory())


watching = threading.Thread(target=watch)
watching.start()
rows = load(large)
finished.set()
watching.join()
print(json.dumps({"rows": rows, "growth": max(peak, memory()) - before}))
"""


def write_rows(path: Path, count: int, unused: int) -> str:
    with path.open("w") as file:
        for number in range(count):
            row = {"q": f"question {number}", "a": "an answer", "unused": f"{number} " + "x" * unused}
            file.write(json.dumps(row) + "\n")
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("rows", "unused", "most"),
    [
        pytest.param(4_000, 25_000, 50 * MB, id="100 MB", marks=pytest.mark.slow),
        pytest.param(200_000, 1_000, 80 * MB, id="210 MB in many rows", marks=pytest.mark.slow),
    ],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, rows: int, unused: int, most: int) -> None:
    small = write_rows(tmp_path / "small.jsonl", 100, 100)
    large = write_rows(tmp_path / "large.jsonl", rows, unused)
    assert Path(large).stat().st_size >= 2 * most
    program = [sys.executable, "-c", PROGRAM, small, large, str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"] == sum("7" in str(number) for number in range(rows))
    assert result["growth"] < most
