"""Measures what an adapter costs when a model answers: merged into the base, beside it, switched, and mixed in a batch.

    python scripts/bench_latency.py                              a CPU: the bundled base
    python scripts/bench_latency.py --shapes 1b --seconds 50     a GPU: Llama shapes of 1.1B weights, random
    python scripts/bench_latency.py --shapes 7b --seconds 50     a GPU: Llama-2-7B's shapes, random

LoRA's paper (arXiv 2106.09685, section 4.1) says that a merged adapter adds no latency. Every row of the first table is
measured in pairs with the base: the base's time and the row's follow one another, and which comes first alternates.
``× base`` is the median of the pairs' ratios, with an interval that holds that median: with 95 % from 6 pairs on, and
with 75 % where there are only 3. The row ``base, again`` is the same model as the base, so its interval says what the
measurement cannot tell apart.

- Decoding: batch 1, one token after another from a cache, without the time of the prompt. The median of a token.
- Prefill: batch 1, one pass over a prompt; the logits of its last token.
- Adapters are on all linear layers but the head, with factors that are not zero. PEFT keeps them in float32 beside a
  base in bfloat16 when it loads them; ``bfloat16`` is the same adapter in the base's type.

The second table has the time of a switch between two adapters in memory (PEFT's ``set_adapter``), of switching them
off, of reading one from a file, and of the other way to switch: to merge it into the weights and to take it out again.

The third one is a batch whose rows are for several adapters: one after another, each with its own rows, or all rows in
one batch (PEFT's ``adapter_names``, which does not take DoRA or merged adapters).
"""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import argparse  # noqa: E402
import copy  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from bench_train import SHAPES  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402

BUNDLED = Path(__file__).resolve().parent.parent / "lora_ga_cli" / "assets" / "tiny_base"
SEED = 42
FEWEST = 3
"""Pairs that are measured even where the time is over."""
SHARES = {"decoding": 0.45, "prefill": 0.15, "switches": 0.1, "batches": 0.3}
"""Parts of the time that is left after the models are made."""
OTHERS = ("b", "c", "d")
"""Adapters beside PEFT's first one, which is named ``default``."""
Work = Callable[[], object]


@dataclass(frozen=True)
class Compared:
    """Pairs of times, of a row and of the base.

    Args:
        seconds: the median time of the row.
        ratio: the median of the ratios to the base.
        low, high: an interval that holds that median with 95 % from 6 pairs on; with fewer, their range.
        pairs: how many.
    """

    row: str
    seconds: float
    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def text(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f}–{self.high:.3f})"


def interval_of_median(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval that holds the median of the distribution with at least this probability, whatever its form.

    It lies between two order statistics, the number of values below the median being binomial. With few values it is
    their range, and holds the median with a lower probability.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.5**count, 0
    while rank + 1 < count / 2 and 2 * (below + math.comb(count, rank + 1) * 0.5**count) <= 1 - confidence:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return ordered[rank], ordered[count - 1 - rank]


class Clock:
    """Times work on a device.

    Args:
        device: whose queue of operations has to be empty before and after.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def seconds(self, work: Work) -> float:
        self._wait()
        began = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def compare(
        self, base: Callable[[], float], rows: Mapping[str, Callable[[], float]], until: float
    ) -> list[Compared]:
        """Pairs of the base and of each row until a time on the clock `time.monotonic`.

        Args:
            base: does the work with the base, and returns its time.
            rows: the same for others, by name.
        """
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for work in (base, *rows.values()):
            work()
        number = 0
        while number < FEWEST or time.monotonic() < until:
            for name, row in rows.items():
                if number % 2:
                    of_row, of_base = row(), base()
                else:
                    of_base, of_row = base(), row()
                times[name].append((of_base, of_row))
            number += 1
        return [self._compared(name, pairs) for name, pairs in times.items()]

    @staticmethod
    def _compared(name: str, pairs: Sequence[tuple[float, float]]) -> Compared:
        ratios = [of_row / of_base for of_base, of_row in pairs]
        seconds = statistics.median(of_row for _, of_row in pairs)
        return Compared(name, seconds, statistics.median(ratios), *interval_of_median(ratios), len(pairs))


def build_base(shapes: str, device: torch.device) -> Any:
    """A base in evaluation mode: bfloat16 with random weights, or the bundled one in float32."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # old names that PEFT uses
    torch.manual_seed(SEED)
    if shapes == "bundled":
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).to(device)
    else:
        config = transformers.LlamaConfig(**SHAPES[shapes], max_position_embeddings=4096, pad_token_id=0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        with device:
            model = transformers.LlamaForCausalLM(config)
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None  # answers of one length
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False).eval()


def with_own_modules(model: Any) -> Any:
    """A copy of a model that shares its weights, so that modules can be replaced in it."""
    return copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})


def adapted(base: Any, rank: int, *, dora: bool = False, names: Sequence[str] = ("default",)) -> PeftModel:
    """A model with adapters on it, in evaluation mode. B is drawn too, so that an adapter changes what is computed."""
    config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
    torch.manual_seed(SEED + rank)
    with base.device:  # where PEFT makes the factors, which it would draw on the CPU
        model: Any = get_peft_model(base, config, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, config)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(std=0.05)
    return model.requires_grad_(False).eval()  # type: ignore[no-any-return]


@torch.inference_mode()
def decoded(model: Any, prompt: torch.Tensor, tokens: int, clock: Clock) -> float:
    """Seconds for a token after a prompt.

    Args:
        prompt: ids of shape (1, length).
        tokens: how many tokens are timed.
    """
    out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    cache, last = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)

    def write() -> None:
        token = last
        for _ in range(tokens):
            logits = model(input_ids=token, past_key_values=cache, use_cache=True).logits
            token = logits[:, -1:].argmax(dim=-1)

    return clock.seconds(write) / tokens


@torch.inference_mode()
def read(model: Any, prompt: torch.Tensor, clock: Clock) -> float:
    """Seconds for a pass over a prompt of shape (1, length)."""
    return clock.seconds(lambda: model(input_ids=prompt, use_cache=True, logits_to_keep=1))


@torch.inference_mode()
def difference(one: Any, other: Any, prompt: torch.Tensor) -> tuple[float, float]:
    """The largest difference of two models' logits of the last token, and the largest of the first one's logits."""
    first, second = (model(input_ids=prompt, logits_to_keep=1).logits.float() for model in (one, other))
    return float((first - second).abs().max()), float(first.abs().max())


def verdict(what: str, rows: Sequence[Compared]) -> str:
    """Which rows the measurement tells apart from the base: their intervals and the one of the base itself are apart.

    Args:
        rows: the first one is the base itself.
    """
    same, *others = rows
    apart = [row.row for row in others if row.low > same.high or row.high < same.low]
    equal = [row.row for row in others if row.row not in apart]
    lists = ["; ".join(found) or "none" for found in (equal, apart)]
    return f"{what}: as the base, within the noise: {lists[0]}. Apart from it: {lists[1]}."


def switch_times(model: Any, clock: Clock, until: float) -> list[tuple[str, float, int]]:
    """What the ways to change the active adapter take: text, median seconds, and how many were measured.

    The last one changes the weights of the base by the rounding of its type.
    """
    found: list[tuple[str, float, int]] = []

    def measure(text: str, works: Sequence[Work], end: float) -> None:
        for work in works:
            work()
        times: list[float] = []
        while len(times) < FEWEST or (time.monotonic() < end and len(times) < 200):
            times.append(clock.seconds(works[len(times) % len(works)]))
        found.append((text, statistics.median(times), len(times)))

    def off_and_on() -> None:
        with model.disable_adapter():
            pass

    left = (until - time.monotonic()) / 4
    first, second = "default", OTHERS[0]
    measure("switch to another adapter", [lambda: model.set_adapter(second), lambda: model.set_adapter(first)],
            time.monotonic() + left)  # fmt: skip
    measure("adapters off for a moment", [off_and_on], time.monotonic() + left)
    with tempfile.TemporaryDirectory(prefix="bench_latency_") as folder:
        model.save_pretrained(folder, selected_adapters=[second])
        place = f"{folder}/{second}"

        def load() -> None:
            model.load_adapter(place, "loaded", torch_device=str(clock.device))

        times: list[float] = []
        end = time.monotonic() + left
        while len(times) < FEWEST or time.monotonic() < end:
            times.append(clock.seconds(load))
            model.delete_adapter("loaded")
        found.append(("read another adapter from a file", statistics.median(times), len(times)))
    model.set_adapter(first)

    def merge() -> None:
        model.merge_adapter()
        model.unmerge_adapter()

    measure("merge, and take out again", [merge], time.monotonic() + left)
    return found


def batch_works(model: Any, rows: torch.Tensor, tokens: int) -> dict[str, Work]:
    """Ways to answer rows, of which each adapter has an equal share.

    Args:
        rows: ids of shape (rows, length).
    """
    names = ["default", *OTHERS]
    share = len(rows) // len(names)
    of_rows = [name for name in names for _ in range(share)]

    def write(some: torch.Tensor, **options: Any) -> Any:
        mask = torch.ones_like(some)
        with torch.inference_mode():
            return model.generate(
                input_ids=some, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **options
            )

    def one() -> Any:
        model.set_adapter(names[0])
        return write(rows)

    def switched() -> Any:
        parts = []
        for number, name in enumerate(names):
            model.set_adapter(name)
            parts.append(write(rows[number * share : (number + 1) * share]))
        return torch.cat(parts)

    def base() -> Any:
        with model.disable_adapter():
            return write(rows)

    return {
        "the base, all rows in one batch": base,
        "one adapter, all rows in one batch": one,
        f"{len(names)} adapters, switched": switched,
        f"{len(names)} adapters, mixed in one batch": lambda: write(rows, adapter_names=of_rows),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=["bundled", *SHAPES], default="bundled")
    parser.add_argument("--ranks", default="8,64,256", help="ranks of adapters beside the base")
    parser.add_argument("--dora", action="store_true", help="also DoRA, at the middle one of the ranks")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt of a prefill")
    parser.add_argument(
        "--tokens", type=int, default=16, help="tokens that a measurement writes, half as many in a batch"
    )
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch for four adapters")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of everything, from the start on")
    parser.add_argument("--threads", type=int, help="threads of a CPU")
    parser.add_argument("--json", help="a file for the results")
    options = parser.parse_args()
    options.ranks = [int(rank) for rank in options.ranks.split(",")]
    if options.rows % (1 + len(OTHERS)):
        parser.error(f"--rows is a multiple of {1 + len(OTHERS)}")
    return options


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = Clock(device)
    base = build_base(options.shapes, device)
    middle = options.ranks[len(options.ranks) // 2]
    rows: dict[str, Any] = {"base, again": base}
    rows["merged"] = adapted(copy.deepcopy(base), middle).merge_and_unload()  # type: ignore[operator]
    for rank in options.ranks:
        rows[f"rank {rank} beside the base"] = adapted(with_own_modules(base), rank)
    if base.dtype != torch.float32:
        rows[f"rank {middle}, bfloat16"] = adapted(with_own_modules(base), middle).to(base.dtype)
    if options.dora:
        rows[f"DoRA, rank {middle}"] = adapted(with_own_modules(base), middle, dora=True)
    several = adapted(with_own_modules(base), middle, names=("default", *OTHERS))
    vocabulary = base.config.vocab_size
    generator = torch.Generator().manual_seed(SEED)
    longest = torch.randint(3, vocabulary, (options.rows, options.prompt), generator=generator).to(device)
    prompt, short = longest[:1], longest[:1, :64]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\n{options.shapes}, {str(base.dtype).removeprefix('torch.')}: {name}; torch {torch.__version__}", end="; ")
    print(f"transformers {transformers.__version__}; made in {time.monotonic() - BEGAN:.0f} s")
    off, largest = difference(rows[f"rank {middle} beside the base"], rows["merged"], short)
    changed, _ = difference(base, rows["merged"], short)
    print(
        f"merged or beside the base: logits differ by {off:.2g}, of {largest:.2g}; the adapter changes them by ", end=""
    )
    print(f"{changed:.2g}\n", flush=True)

    free = BEGAN + options.seconds - time.monotonic()
    ends, end = {}, time.monotonic()
    for part, share in SHARES.items():
        end += share * free
        ends[part] = end
    decoding = clock.compare(
        lambda: decoded(base, short, options.tokens, clock),
        {text: lambda model=model: decoded(model, short, options.tokens, clock) for text, model in rows.items()},
        ends["decoding"],
    )
    prefill = clock.compare(
        lambda: read(base, prompt, clock),
        {text: lambda model=model: read(model, prompt, clock) for text, model in rows.items()},
        ends["prefill"],
    )
    print(f"| | a token | × base | prompt of {options.prompt} | × base | pairs |\n|---|---|---|---|---|---|")
    for written, prompted in zip(decoding, prefill, strict=True):
        print(
            f"| {written.row} | {written.seconds * 1e3:.2f} ms | {written.text} | {prompted.seconds * 1e3:.2f} ms | "
            f"{prompted.text} | {written.pairs}, {prompted.pairs} |"
        )
    print(f"\n{verdict('a token', decoding)}\n{verdict('a prompt', prefill)}\n", flush=True)
    works = batch_works(several, longest[:, :64], options.tokens // 2)
    switched, mixed = list(works)[2:]
    same = torch.equal(works[switched](), works[mixed]())
    baseline = works["one adapter, all rows in one batch"]
    batches = clock.compare(
        lambda: clock.seconds(baseline),
        {text: lambda work=work: clock.seconds(work) for text, work in works.items()},
        ends["batches"] - SHARES["switches"] * free,
    )
    switches = switch_times(several, clock, ends["batches"])
    print("| adapters in memory | time | measured |\n|---|---|---|")
    for text, seconds, count in switches:
        print(f"| {text} | {seconds * 1e3:.2f} ms | {count} |")
    print(f"\n| {options.rows} rows, {options.tokens // 2} tokens each | time | × one adapter | pairs |")
    print("|---|---|---|---|")
    for batch in batches:
        print(f"| {batch.row} | {batch.seconds * 1e3:.0f} ms | {batch.text} | {batch.pairs} |")
    by_row = {batch.row: batch for batch in batches}
    ratio = by_row[mixed].seconds / by_row[switched].seconds
    print(
        f"\nmixed over switched: {ratio:.2f}; the answers are {'the same' if same else 'not all the same (rounding)'}"
    )
    if options.json:
        parts = {"decoding": decoding, "prefill": prefill, "batches": batches}
        content: dict[str, Any] = {part: [asdict(item) for item in found] for part, found in parts.items()}
        Path(options.json).write_text(json.dumps(content | {"switches": switches}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
