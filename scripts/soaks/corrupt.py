"""Flips single bits of files that are read back, and cuts files; nothing of it may go unnoticed.

A small project is made once: an unfinished run, a chain whose second link is unfinished, a finished run with a stored
evaluation and one that was interrupted, a merged model, and the cache of all these. Then, each time in a fresh copy of
it, one bit of one file is flipped (its time of change stays), or a file is cut or removed, and the command that reads
the file runs. It has to end as without the damage and name the file, or with exit code 2 and name it. A report may also
show what is left, with exit code 1, if it names the file and every value is in the report without the damage too.
A line that is printed without the damage, too, says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import load_file

from lora_ga_cli.json_files import write_json
from soaks._figure import Figure, at_most
from soaks._project import (
    Done,
    files_below,
    inside,
    loraga,
    make_base,
    make_problems,
    make_rows,
    must,
    options,
    quickly,
    train_until,
)

RUN = Path("runs/mine")
CHECKPOINT = "checkpoints/checkpoint-4"
REMOVABLE = ("init.safetensors", "manifest.json", "adapter_model.safetensors")
"""Files that are removed, and not cut, in one of three cases. Without others a command begins anew."""
MENDED, REFUSED, UNNAMED, SILENT, UNEXPECTED = "mended", "refused", "unnamed", "silent", "unexpected"
LESS = "less"
LOSS = ["eval=loss", "device=cpu"]
ANSWERS = ["eval=gsm8k", "eval.prompt='{question}'", "eval.max_new_tokens=4", "eval.batch_size=2", "device=cpu"]
PROBLEMS, REGRADED = "eval.file=../problems.jsonl", "eval.file=../regraded.jsonl"


@dataclass(frozen=True)
class Scene:
    """A state of the project, and a command that reads files in it.

    Args:
        files: those that the command reads, relative to the state.
        result: what the command makes, as something that can be compared.
        grows: whether the files are added to line by line, so that a cut one is as an earlier interruption leaves it,
            and nothing has to be said.
        shows_less: whether the command shows what is left where a file is damaged; its result is a page of HTML.
    """

    name: str
    state: Path
    files: Sequence[str]
    command: Sequence[str]
    result: Callable[[], Any]
    grows: bool = False
    shows_less: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flips", type=int, default=1000, help="how many bits are flipped, one at a time (1000)")
    parser.add_argument("--cuts", type=int, default=300, help="how many files are cut, one at a time (300)")
    parser.add_argument("--only", default="", help="only scenes whose name contains this text")
    parser.add_argument("--verbose", action="store_true", help="a line for each case")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Damages files one after another, and counts what came of it."""
    draw, home = random.Random(options.seed), Path.cwd()
    with quickly(), ExitStack() as stack:
        for module in ("data.local", "data.identity"):  # so that the small file of rows is kept as a large one is
            stack.enter_context(mock.patch(f"lora_ga_cli.{module}.SMALL", 0))
        scenes = [scene for scene in make_scenes(home) if options.only in scene.name]
        expected = {scene.name: _expected(scene, home) for scene in scenes}
        for kind, count in (("flip", options.flips), ("cut", options.cuts)):
            found: Counter[str] = Counter()
            by_scene: Counter[str] = Counter()
            for number in range(count):
                scene = scenes[number % len(scenes)]
                outcome, told = _case(scene, kind, draw, home, *expected[scene.name])
                found[outcome] += 1
                by_scene[scene.name] += 1
                if options.verbose or outcome not in (MENDED, REFUSED, LESS):
                    print(f"  {outcome}: {told}", flush=True)
            what = "flipped bits" if kind == "flip" else "cut or removed files"
            yield Figure(what, f"{sum(found.values()):,}")
            yield Figure("  of which: same result, and the file is named", f"{found[MENDED]:,}")
            yield Figure("  of which: exit code 2, and the file is named", f"{found[REFUSED]:,}")
            yield Figure("  of which: a report without it, exit code 1, and the file is named", f"{found[LESS]:,}")
            yield at_most("  used or mended without a word", found[SILENT])
            yield at_most("  refused without naming the file", found[UNNAMED])
            yield at_most("  other errors, or another result", found[UNEXPECTED])


def make_scenes(home: Path) -> list[Scene]:
    """Makes the project in every state, below ``home/states``."""
    make_base(home / "base")
    make_rows(home / "rows.jsonl")
    (home / "states").mkdir()
    make_problems(home / "states" / "problems.jsonl", 0)
    make_problems(home / "states" / "regraded.jsonl", 1)
    plain, chain = [*options(home), "method=lora_ga"], [*options(home), "method=relora", "method.links=2"]
    states = home / "states"
    for name, train, saved in (("stopped", plain, 2), ("chain", chain, 2)):
        (states / name).mkdir()
        with inside(states / name):
            train_until(saved, train)
    shutil.copytree(states / "stopped", states / "finished")
    with inside(states / "finished"):
        must("train", *plain)
        shutil.copytree("../finished", "../again")
        must("merge", str(RUN), "--output", "merged")
        shutil.copytree("../finished", "../partial")
        must("eval", str(RUN), *LOSS)
        must("eval", str(RUN), *ANSWERS, PROBLEMS)
    with inside(states / "partial"):
        _evaluate_until_interrupted()
    for name in ("tabled", "inspected"):
        shutil.copytree(states / "finished", states / name)
    _make_table(states / "tabled" / "table", 17.25)
    _make_table(states / "tabled" / "other", 38.75)
    with inside(states / "inspected"):
        must("inspect", str(RUN))  # what it found is then read in the place of the initial factors
    shutil.copytree(states / "partial", states / "cached")
    shutil.rmtree(states / "cached" / "runs")
    shutil.copytree(states / "cached", states / "sources")
    shutil.rmtree(states / "sources" / "cache" / "rows")  # which would be read in their place
    run_files = ["manifest.json", "config.yaml"]
    resumed = [*run_files, "init.safetensors", "metrics.jsonl", "cost.json", f"{CHECKPOINT}/*"]
    of_chain = [*run_files, "metrics.jsonl", "links/*/init.safetensors", "links/0/adapter/*", "links/0/*.safetensors",
                "links/*/link.json", "links/1/cost.json", "links/1/checkpoints/checkpoint-2/*"]  # fmt: skip
    of_result = ["adapter*", "tokenizer*"]
    cached = ["cache/*.json", "cache/gradients/*/*.json", "cache/gradients/*/*.safetensors", "cache/rows/*/*"]

    def scene(
        name: str, state: str, patterns: Sequence[str], command: Sequence[str], result: Callable[[], Any]
    ) -> Scene:
        return Scene(
            name, states / state, files_below(states / state, patterns), command, result,
            grows=name == "answer", shows_less=name.startswith("report"),
        )  # fmt: skip

    def in_run(patterns: Sequence[str]) -> list[str]:
        return [f"{RUN}/{pattern}" for pattern in patterns]

    score = ["eval", str(RUN)]
    shown = in_run([*run_files, "adapter*", "metrics.jsonl", "eval.json", "eval/*"])
    report = ["report", str(RUN), "--output", f"{RUN}/report.html"]
    gradients = ["cache/gradients/*/*.json", "cache/gradients/*/*.safetensors"]
    return [
        scene("resume", "stopped", in_run(resumed), ["train", *plain], _adapter),
        scene("resume a chain", "chain", in_run(of_chain), ["train", *chain], _adapter),
        scene("train again", "again", in_run([*run_files, *of_result]), ["train", *plain], _adapter),
        scene("score", "again", in_run([*run_files, *of_result]), [*score, *LOSS], _values),
        scene("score again", "finished", in_run([*run_files, "eval.json"]), [*score, *LOSS], _values),
        scene("answer", "partial", in_run(["eval/*.partial.jsonl"]), [*score, *ANSWERS, PROBLEMS], _answers),
        scene("answer again", "finished", in_run(["eval/*.json"]), [*score, *ANSWERS, PROBLEMS], _answers),
        scene("grade again", "finished", in_run(["eval/*"]), [*score, *ANSWERS, REGRADED], _regraded),
        scene("merge", "again", in_run([*run_files, *of_result]), ["merge", str(RUN), "--output", "out"], _merged),
        scene("merged model", "partial", ["merged/*"], ["eval", "merged", *LOSS, *_data(plain)], _values),
        scene("report", "inspected", [*shown, *in_run(["inspection.json"]), *gradients], report, _page),
        scene(
            "report without an inspection", "tabled", [*shown, *in_run(["init.safetensors"]), *gradients], report, _page
        ),
        scene("report of tables", "tabled", ["table/*"], ["report", "table", "other", *report[2:]], _page),
        scene("cache", "cached", cached, ["init", *plain], _start),
        scene("cache of rows as read", "sources", ["cache/sources/*/*"], ["init", *plain], _start),
    ]


def _make_table(folder: Path, score: float) -> None:
    """Writes a table as `loraga reproduce` does, for programs."""
    folder.mkdir()
    content = {
        "title": folder.name,
        "headings": ["method", "score"],
        "rows": [["one", f"{score}"]],
        "notes": ["Of none."],
    }
    write_json(folder / "table.json", {**content, "runs": []}, digest=True)


def _data(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.startswith(("dataset", "cache_dir", "model=", "model.dtype"))]


def _evaluate_until_interrupted() -> None:
    from lora_ga_cli.errors import UserError
    from lora_ga_cli.evaluation import generate

    append, count = generate.append_completions, 0

    def appending(*arguments: Any) -> None:
        nonlocal count
        append(*arguments)
        count += 1
        if count == 3:
            raise UserError("stopped here")

    with mock.patch.object(generate, "append_completions", appending):
        done = loraga("eval", str(RUN), *ANSWERS, PROBLEMS)
    if "stopped here" not in done.text:
        raise RuntimeError(done.text)


def _adapter() -> Any:
    return _tensors(RUN / "adapter_model.safetensors")


def _start() -> Any:
    return _tensors(RUN / "init.safetensors")


def _merged() -> Any:
    return _tensors(Path("out/model.safetensors"))


def _values() -> Any:
    return [json.loads(file.read_text())["values"] for file in sorted(Path("runs").glob("*/eval.json"))]


def _answers(problems: str = PROBLEMS) -> Any:
    """The values and the answers of the results on a file of problems."""
    found = []
    for file in sorted((RUN / "eval").glob("gsm8k-*.json")):
        try:
            result = json.loads(file.read_bytes())
        except ValueError:
            continue  # an earlier result, which was damaged and not used
        of = result.get("options") if isinstance(result, dict) else None  # the bit may be one of a name
        if isinstance(of, dict) and problems == f"eval.file={of.get('file')}":
            lines = file.with_suffix(".jsonl").read_text().splitlines()
            found.append((result.get("values"), [json.loads(line) for line in lines]))
    return found


def _page() -> str:
    """The report without the time at which it was written."""
    text = (RUN / "report.html").read_text(encoding="utf-8")
    return re.sub(r"(Written by loraga \S+) on [^.]*\.", r"\1.", text)


def _values_in(page: str) -> set[str]:
    """The values that a report shows in tables and lists."""
    return set(re.findall(r"<(?:td|dd|b)\b[^>]*>([^<]*\d[^<]*)<", page))


def _regraded() -> Any:
    return _answers(REGRADED)


def _tensors(file: Path) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


def _expected(scene: Scene, home: Path) -> tuple[Any, set[str]]:
    """What the command makes without damage, and the lines that it prints."""
    with _copy(scene, home):
        done = must(*scene.command)
        return scene.result(), set(map(_without_numbers, done.lines))


def _without_numbers(line: str) -> str:
    """A line without what differs from one time to the next, such as seconds."""
    return re.sub(r"\d+", "#", line)


def _copy(scene: Scene, home: Path) -> Any:
    work = home / "states" / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(scene.state, work)
    return inside(work)


def _case(scene: Scene, kind: str, draw: random.Random, home: Path, expected: Any, usual: set[str]) -> tuple[str, str]:
    """Damages a file, runs the command, and says what came of it, with what was done and printed.

    Args:
        expected: what the command makes without damage.
        usual: the lines that it prints then.
    """
    file = Path(draw.choice(scene.files))
    with _copy(scene, home):
        how = _flip(file, draw) if kind == "flip" else _cut(file, draw)
        done = loraga(*scene.command)
        outcome = _outcome(done, file, scene, expected, usual, quiet=scene.grows and kind == "cut")
    return outcome, f"{scene.name}: {file} {how}: exit {done.code}: {done.text[-600:]}"


def _flip(file: Path, draw: random.Random) -> str:
    before, content = file.stat(), bytearray(file.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"with bit {bit} of {8 * len(content)} flipped"


def _cut(file: Path, draw: random.Random) -> str:
    if file.name in REMOVABLE and draw.random() < 1 / 3:
        file.unlink()
        return "removed"
    before = file.stat()
    left = draw.randrange(before.st_size)
    os.truncate(file, left)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"cut to {left} of {before.st_size} bytes"


def _outcome(done: Done, file: Path, scene: Scene, expected: Any, usual: set[str], *, quiet: bool) -> str:
    """What came of damage.

    Args:
        quiet: whether nothing has to be said if the result is the same.
    """
    # a checkpoint and an entry of the cache are named as a whole
    names = [file.name, *(part for part in file.parts[:-1] if part.startswith("checkpoint-") or len(part) == 16)]
    new = [line for line in done.lines if _without_numbers(line) not in usual]
    named = any(name in line for line in new for name in names)
    if scene.shows_less and done.code == 1 and "unexpected" not in done.text:
        only_less = _values_in(scene.result()) <= _values_in(expected)
        return LESS if named and only_less else UNEXPECTED if named else SILENT
    if "unexpected" in done.text or done.code not in (0, 2):
        return UNEXPECTED
    if done.code == 2:
        return REFUSED if named else UNNAMED
    if scene.result() != expected:
        return UNEXPECTED if named else SILENT
    return MENDED if named or quiet else SILENT
