"""Gives loraga inputs as nobody would write them; each has to work, or be refused in a line that says what is wrong.

Of hypothesis come words of a command line, recipes and files of choices, files of data, adapters, and stored gradients
(see `_cases.py`). Only the exit codes 0 and 2 are right, and nothing may compute for longer than ten seconds. The
memory of the process is limited. What failed is printed, with the shortest input of each kind of failure.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import resource
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from lora_ga_cli.cli.app import main
from lora_ga_cli.cli.errors import report_error
from lora_ga_cli.errors import SweepError
from soaks._cases import CHAT, COMMANDS, changed_json, changed_tensors, data_files, one_of, yaml_files
from soaks._figure import Figure, at_least, at_most
from soaks._project import inside, make_base, make_rows, must, options, quickly, resource_limit

LIMIT = 10.0
"""Seconds of computing after which an input counts as one that hangs."""
MEMORY = 12 * 2**30
"""Bytes of addresses that the process may have."""
MANY_JOBS = 3
"""Jobs of a sweep after which it is not followed any further."""


class TooLong(BaseException):
    """The time for one input is over."""


class Enough(BaseException):
    """Enough was seen of an input."""


@dataclass
class Found:
    """What came of the inputs of one kind.

    Args:
        codes: how often each exit code came.
        failures: by kind of failure the shortest input, and the end of the traceback.
        slowest: the longest computing of one input, in seconds, and the input.
    """

    codes: Counter[int] = field(default_factory=Counter)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    failed: int = 0
    hung: int = 0
    slowest: tuple[float, str] = (0.0, "")

    def add(self, case: Any, call: Callable[[], Any]) -> None:
        """Runs one input."""
        began = time.process_time()
        try:
            code, failure, trace = outcome(call)
        except TooLong as late:
            self.hung += 1
            code, failure, trace = -1, f"longer than {LIMIT:g} s", _end_of(late)
        self.slowest = max(self.slowest, (time.process_time() - began, repr(case)))
        self.codes[code] += 1
        if failure:
            self.failed += 1
            shown = repr(case)
            known = self.failures.get(failure)
            if known is None or len(shown) < len(known[0]):
                self.failures[failure] = shown, trace


def outcome(call: Callable[[], Any]) -> tuple[int, str, str]:
    """The exit code, and a failure with its traceback; both are empty where all is well."""
    printed, trace, failure = io.StringIO(), "", ""
    before = signal.signal(signal.SIGPROF, _too_long)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            signal.setitimer(signal.ITIMER_PROF, LIMIT)
            try:
                result = call()
                code = result if isinstance(result, int) else 0
            except Enough:
                code = 0
            except SystemExit as done:
                code = done.code if isinstance(done.code, int) else 1
            except SweepError as error:  # its own exit code is 1, whatever its jobs failed for
                code = max((getattr(one, "exit_code", 1) for one in error.failures), key=lambda code: code != 2)
                trace, failure = _end_of(error), f"SweepError of {error.failures!r}"
            except Exception as error:
                code, trace = report_error(error), _end_of(error)
                failure = f"{type(error).__name__} at {_place(error)}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, before)
    text = printed.getvalue()
    if code in (0, 2) and "Traceback (most recent" not in text:
        return code, "", ""
    return code, failure or f"exit code {code}: {' '.join(text.split())[-160:]}", trace


def _too_long(number: int, frame: Any) -> None:
    raise TooLong


def _place(error: BaseException) -> str:
    """The last line of the package that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lora_ga_cli" in frame.filename] or list(frames)
    return f"{own[-1].filename.rpartition('lora_ga_cli/')[2]}:{own[-1].lineno}"


def _end_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)[-6:])[-1800:]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=200, help="how many inputs of each kind (200)")
    parser.add_argument("--only", default="", help="only kinds whose name contains this text")
    parser.add_argument("--verbose", action="store_true", help="the slowest input of each kind")


def run(options: argparse.Namespace) -> Iterator[Figure]:
    """Makes a small project, and gives it the inputs."""
    home = Path.cwd()
    with quickly(), resource_limit(resource.RLIMIT_AS, MEMORY):
        for name, make in KINDS.items():
            if options.only not in name:
                continue
            folder = home / name
            folder.mkdir()
            with inside(folder):
                strategy, call = make(folder)
                found = tried(strategy, call, options.cases, options.seed)
            total = sum(found.codes.values())
            yield at_least(f"inputs: {name}", total, options.cases)
            yield at_least("  that worked", found.codes[0], options.cases // 50)
            yield Figure("  that were refused", f"{found.codes[2]:,}")
            yield at_most("  that ended otherwise", found.failed - found.hung)
            yield at_most(f"  that computed for longer than {LIMIT:g} s", found.hung)
            yield Figure("  the slowest", f"{found.slowest[0]:.1f} s")
            if options.verbose:
                print(f"--- the slowest\n{found.slowest[1][:1500]}", flush=True)
            for failure, (case, trace) in found.failures.items():
                print(f"--- {failure}\n{case[:1500]}\n{trace}", flush=True)


def tried(strategy: st.SearchStrategy[Any], call: Callable[[Any], Callable[[], Any]], cases: int, seed: int) -> Found:
    """What came of this many inputs."""
    found = Found()

    @seeded(seed)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def one(case: Any) -> None:
        if sum(found.codes.values()) < cases:  # hypothesis may run some again
            here = Path.cwd()
            found.add(case, call(case))
            os.chdir(here)

    one()
    return found


Made = tuple[st.SearchStrategy[Any], Callable[[Any], Callable[[], Any]]]


def overrides(folder: Path) -> Made:
    """Words of `loraga train`: most are only composed, one of thirty has a dry run."""
    from lora_ga_cli.config.launch import launch

    make_base(folder / "base")
    make_rows(folder / "rows.jsonl")
    starts = st.sampled_from([["recipe=quickstart"], options(folder), options(folder), []])

    def call(case: tuple[list[str], list[str], int]) -> Callable[[], Any]:
        start, words, dry = case
        if dry == 39:
            return lambda: main(["train", "--dry-run", "--debug", *start, *words])
        jobs: list[str] = []

        def job(config: Any, title: str) -> None:
            jobs.append(title)
            if len(jobs) >= MANY_JOBS:
                raise Enough

        return lambda: launch([*start, *words], job)

    return st.tuples(starts, COMMANDS, one_of(39)), call


def recipes(folder: Path) -> Made:
    """Files of a user's configuration folder."""
    from lora_ga_cli.config.compose import compose

    def call(case: tuple[str, bytes]) -> Callable[[], Any]:
        group, data = case
        shutil.rmtree(folder / "mine", ignore_errors=True)
        place = folder / "mine" / ("recipes" if group == "recipe" else group)
        place.mkdir(parents=True)
        (place / "fuzz.yaml").write_bytes(data)
        start = [] if group == "recipe" else ["recipe=quickstart"]
        return lambda: compose([*start, f"{group}=fuzz", "--config-dir", "mine"])

    return yaml_files(), call


def data(folder: Path) -> Made:
    """Files of rows, which are read and tokenized."""
    from transformers import AutoTokenizer

    from lora_ga_cli.config.compose import compose
    from lora_ga_cli.data import load_data

    make_base(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "base"))
    tokenizer.chat_template = CHAT

    def call(case: tuple[str, bytes, list[str]]) -> Callable[[], Any]:
        ending, content, words = case
        file = folder / ("rows" + (f".{ending}" if ending else ""))
        file.write_bytes(content)

        def read() -> None:
            start = ["model=causal_lm", f"model.path={folder / 'base'}", "dataset=jsonl", f"dataset.train_file={file}"]
            config = compose([*start, "dataset.max_length=128", *words])
            load_data(config.dataset, task="causal_lm", tokenizer=tokenizer, seed=0, max_positions=128, vocabulary=259)

        return read

    return data_files(), call


@st.composite
def folders(draw: st.DrawFn, description: Any, tensors: bytes) -> tuple[bytes | None, bytes | None]:
    """The two files of an adapter or a gradient, of which one is changed, or both; None is a missing file."""
    import json

    which = draw(one_of(9))
    first = changed_json(draw, description) if which < 7 else json.dumps(description).encode()
    second = changed_tensors(draw, tensors) if which >= 6 else tensors
    return (None if draw(one_of(60)) == 1 else first), (None if draw(one_of(60)) == 1 else second)


def laid_out(folder: Path, files: dict[str, bytes | None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)


def adapters(folder: Path) -> Made:
    """Adapters of strangers: looked into, and loaded onto a base."""
    import json

    from transformers import AutoModelForCausalLM

    from lora_ga_cli.methods.loading import load_adapter

    make_base(folder / "base")
    make_rows(folder / "rows.jsonl")
    must("train", *options(folder))
    base = AutoModelForCausalLM.from_pretrained(str(folder / "base"))
    real = folder / "runs" / "mine"
    description = json.loads((real / "adapter_config.json").read_text())
    tensors = (real / "adapter_model.safetensors").read_bytes()
    place = folder / "theirs"

    def call(case: tuple[tuple[bytes | None, bytes | None], int]) -> Callable[[], Any]:
        (config, weights), how = case
        laid_out(place, {"adapter_config.json": config, "adapter_model.safetensors": weights})
        if how == 0:
            return lambda: main(["inspect", str(place), "--debug"])
        if how == 1:
            return lambda: main(["convert", str(place), str(folder / "converted"), "--debug"])
        return lambda: load_adapter(copy.deepcopy(base), place, "cpu")

    return st.tuples(folders(description, tensors), one_of(3)), call


def artifacts(folder: Path) -> Made:
    """Stored gradients: looked for, verified, loaded, and looked into."""
    import json

    from lora_ga_cli.files import sha256_file
    from lora_ga_cli.gradient.store import ArtifactStore
    from lora_ga_cli.json_files import text_of_json

    make_base(folder / "base")
    make_rows(folder / "rows.jsonl")
    must("estimate-grad", *options(folder), "method=lora_ga")
    store = ArtifactStore(folder / "cache")
    (real,) = store.stored()
    description = json.loads((real / "artifact.json").read_text())
    del description["content_sha256"]
    tensors = (real / "factors.safetensors").read_bytes()
    place = store.path("fuzz")

    def computed() -> Any:
        raise Enough

    def call(case: tuple[tuple[bytes | None, bytes | None], bool, int]) -> Callable[[], Any]:
        (manifest, weights), sealed, how = case
        laid_out(place, {"artifact.json": manifest, "factors.safetensors": weights})
        if sealed and manifest is not None and weights is not None:
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(manifest)
                value["sha256"] = sha256_file(place / "factors.safetensors") if isinstance(value, dict) else None
                (place / "artifact.json").write_text(text_of_json(value, digest=True))
        if how == 0:
            return lambda: main(["inspect", str(place), "--debug"])
        if how == 1:
            return lambda: main(["cache", "list", "--cache-dir", str(folder / "cache"), "--debug"])
        if how == 2:
            return lambda: list(store.verify())
        return lambda: (store.find("fuzz", 4), store.get("fuzz", 4, computed, lambda text: None))

    return st.tuples(folders(description, tensors), st.booleans(), one_of(5)), call


KINDS = {"overrides": overrides, "recipes": recipes, "data": data, "adapters": adapters, "artifacts": artifacts}
"""What makes the inputs of each kind, and runs one."""
