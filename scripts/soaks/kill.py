"""Kills commands at random moments (SIGKILL) and runs them again; the result has to be the one without kills.

Each command runs in a process that is forked from this one, which has imported the libraries: a kill then hits what a
command does, and not the seconds in which it imports. In one of three cases it is killed a second time. The run that
follows has to succeed, its result has to be equal to the bit, and nothing temporary or damaged may be left beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ga_cli.cli.app import main
from lora_ga_cli.files import TEMPORARY
from soaks._figure import Figure, at_least, at_most
from soaks._project import inside, make_base, make_problems, make_rows, must, options, quickly

RUN = Path("runs/mine")
PLACES = ("model.path=", "dataset.train_file=")
SLOWEST = 300.0
"""Seconds after which a command counts as one that hangs."""
TABLE = """
title: Mine
rows: {{LoRA: [method=lora], LoRA-GA: [method=lora_ga]}}
full:
  overrides: [{overrides}]
  seeds: [1]
  columns:
    perplexity: {{value: perplexity, format: number}}
    loss: {{measure: loss, value: validation_loss, format: number}}
"""
SOLUTION = "    return a + b\n"
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n"


@dataclass(frozen=True)
class Scene:
    """A command that is killed.

    Args:
        state: the commands that lead to the state in which it begins.
        results: patterns of the files that are its result.
    """

    name: str
    state: Sequence[Sequence[str]]
    command: Sequence[str]
    results: Sequence[str]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=10, help="how many times each command is killed (10)")
    parser.add_argument("--only", default="", help="only commands whose name contains this text")
    parser.add_argument("--verbose", action="store_true", help="what went wrong, as it was printed")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Kills each command as often as it is asked for."""
    home, draw = Path.cwd(), random.Random(options.seed)
    with quickly():
        _lay_out(home)
        _import_all(home)
        for scene in scenes(home):
            if options.only in scene.name:
                yield from _killed(scene, home, options.kills, draw, options.verbose)


def scenes(home: Path) -> list[Scene]:
    """The commands, on a project that `_lay_out` writes."""
    lora_ga, lora = [*options(home), "method=lora_ga"], [*options(home), "method=lora"]
    # a table's file may not name places outside of the working folder
    places = [word for word in lora if word.startswith(PLACES)]
    trained = [["train", *lora]]
    scored = ["device=cpu", "eval.batch_size=2", "eval.max_new_tokens=4"]
    adapter, weights = "adapter_model.safetensors", "model.safetensors"
    gsm8k = ["eval=gsm8k", "eval.prompt='{question}'", f"eval.file={home / 'problems.jsonl'}"]
    programs = ["eval=humaneval", "eval.execute_code=true", f"eval.file={home / 'programs.jsonl'}"]
    return [
        Scene("estimate-grad", [], ["estimate-grad", *lora_ga], ["cache/gradients/*/factors.safetensors"]),
        Scene(
            "train", [], ["train", *lora_ga], [f"{RUN}/{adapter}", f"{RUN}/init.safetensors", f"{RUN}/metrics.jsonl"]
        ),
        Scene("merge", trained, ["merge", str(RUN), "--output", "merged"], [f"merged/{weights}"]),
        Scene("eval", trained, ["eval", str(RUN), "eval=loss", *scored], [f"{RUN}/eval.json"]),
        Scene("eval of answers", trained, ["eval", str(RUN), *gsm8k, *scored], [f"{RUN}/eval/gsm8k-*.jsonl"]),
        Scene("eval of programs", trained, ["eval", str(RUN), *programs, *scored], [f"{RUN}/eval/humaneval-*.jsonl"]),
        Scene("sweep", [], ["train", "-m", *lora, "name=rank-${rank}", "rank=1,2"], [f"runs/*/{adapter}"]),
        Scene(
            "reproduce",
            [],
            ["reproduce", "mine", "--config-dir", str(home / "user"), *places],
            [f"reproduced/runs/*/{adapter}", "reproduced/mine/table.csv"],
        ),
    ]


def _import_all(home: Path) -> None:
    """Runs each command once here, so that the processes that are forked have imported what it needs.

    With one thread torch starts no others, which a forked process would miss.
    """
    (home / "first").mkdir()
    with inside(home / "first"):
        must("train", *options(home), "method=lora_ga")
        must("merge", str(RUN), "--output", "merged")
        must("eval", str(RUN), "eval=loss", "device=cpu")
        must("eval", str(RUN), "eval=gsm8k", f"eval.file={home / 'problems.jsonl'}", "eval.limit=1", "device=cpu")


def _lay_out(home: Path) -> None:
    make_base(home / "base")
    make_rows(home / "rows.jsonl")
    make_problems(home / "problems.jsonl", 0)
    prompt = 'def add(a, b):\n    """Adds."""\n'
    rows = [
        {
            "task_id": f"HumanEval/{n}",
            "prompt": prompt,
            "canonical_solution": SOLUTION,
            "test": CHECK,
            "entry_point": "add",
        }
        for n in range(6)
    ]
    (home / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (home / "user" / "tables").mkdir(parents=True)
    words = [word for word in options(home) if not word.startswith(("name=", "cache_dir=", *PLACES))]
    table = TABLE.format(overrides=", ".join(json.dumps(word) for word in words))
    (home / "user" / "tables" / "mine.yaml").write_text(table, encoding="utf-8")


def _killed(scene: Scene, home: Path, kills: int, draw: random.Random, verbose: bool) -> Iterator[Figure]:
    state, work = home / "state", home / "work"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir()
    for words in scene.state:
        _must(state, words)
    _begin(work, state)
    began = time.monotonic()
    _must(work, scene.command)
    seconds = time.monotonic() - began
    expected = _results(work, scene)
    if not expected:
        raise RuntimeError(f"{scene.name}: no results")
    counts: Counter[str] = Counter()
    while counts["kills"] < kills:
        _begin(work, state)
        moments = []
        for _ in range(1 + (draw.random() < 1 / 3)):
            moments.append(after := draw.uniform(0.02, 1.0) * seconds)
            counts["kills"] += _kill(work, scene.command, after)
        code, text = _command(work, scene.command)
        problem, found = "", _results(work, scene)
        if code != 0:
            counts["failed"] += 1
            problem = f"exit code {code}"
        elif found != expected:
            counts["other"] += 1
            problem = f"other results: {sorted(found.items() ^ expected.items())}"
        elif left := _left(work):
            counts["left"] += 1
            problem = f"left: {left}"
        if problem and verbose:
            print(f"--- {scene.name}, killed after {moments} of {seconds:.1f} s: {problem}\n{text[-1500:]}", flush=True)
    yield at_least(f"kills: {scene.name}", counts["kills"], kills)
    yield at_most("  the same command failed afterwards", counts["failed"])
    yield at_most("  another result", counts["other"])
    yield at_most("  temporary or damaged files left", counts["left"])


def _begin(work: Path, state: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(state, work)


def _results(work: Path, scene: Scene) -> dict[str, str]:
    """The digest of each file of the result, by its name; of metrics without what differs from run to run."""
    found = {}
    for pattern in scene.results:
        for file in sorted(work.glob(pattern)):
            found[str(file.relative_to(work))] = hashlib.sha256(_lasting(file)).hexdigest()
    return found


def _lasting(file: Path) -> bytes:
    """The content of a file without times and speeds."""
    if file.suffix == ".json":
        return json.dumps(json.loads(file.read_bytes())["values"]).encode()
    if file.name != "metrics.jsonl":
        return file.read_bytes()
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lasting = [{key: value for key, value in line.items() if key in ("step", "loss", "eval_loss")} for line in lines]
    return json.dumps(lasting).encode()


def _left(work: Path) -> list[str]:
    """Temporary files and folders of loraga, and what was set aside as damaged.

    A checkpoint that was being written is set aside with all that is in it, and a line says so.
    """
    names = [item for item in work.rglob("*") if TEMPORARY.fullmatch(item.name) or ".damaged" in item.name]
    names = [item for item in names if not any(".cut-off" in parent.name for parent in item.parents)]
    return sorted(str(item.relative_to(work)) for item in names)


def _kill(work: Path, words: Sequence[str], after: float) -> bool:
    """Starts a command and kills it; False if it had ended before."""
    child, _ = _start(work, words)
    time.sleep(after)
    done, _ = os.waitpid(child, os.WNOHANG)
    if done:
        return False
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _command(work: Path, words: Sequence[str]) -> tuple[int, str]:
    """Runs a command; returns its exit code, and what it printed."""
    child, printed = _start(work, words)
    end = time.monotonic() + SLOWEST
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), printed.read_text(encoding="utf-8", errors="replace")
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1, f"hangs; {printed.read_text(encoding='utf-8', errors='replace')}"


def _must(work: Path, words: Sequence[str]) -> None:
    code, text = _command(work, words)
    if code != 0:
        raise RuntimeError(f"loraga {' '.join(words)} ended with {code}: {text[-2000:]}")


def _start(work: Path, words: Sequence[str]) -> tuple[int, Path]:
    """Forks a process that runs a command in a folder; returns its number, and the file of what it prints."""
    printed = work.with_name(f"{work.name}.txt")

    def command() -> int:
        with printed.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with inside(work):
            return main(words)

    return _fork(command), printed


def _fork(call: Callable[[], int | None]) -> int:
    child = os.fork()
    if child:
        with contextlib.suppress(OSError):  # it has done so itself, or has ended
            os.setpgid(child, child)
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        code = call() or 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
