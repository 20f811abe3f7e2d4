"""Chromium, records of runs that were never trained, and text that tries to run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.data.show import Segment
from lora_ga_cli.evaluation.tasks.answers import Answer
from lora_ga_cli.report.html.record import Answered, Report, RunRecord, ShownRow, TableRecord

HOSTILE = (
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror=window.ran=1>",
    "<svg onload=window.ran=1>",
    "javascript:window.ran=1",
    '" onmouseover="window.ran=1" autofocus onfocus="window.ran=1',
    "' onclick='window.ran=1",
    "<!-- <script> window.ran=1",
    "]]> {{ 7 * 7 }} {% raw %} ${7*7}",
    "line\u2028separated\u2029text",
    "right\u202eto left\u200f",
    "&lt;b&gt; &amp;",
    "</style><style>body { display: none }</style>",
    "w" * 400,
)
"""Texts that run, hide something or widen the page where they are not escaped."""
HOSTILE_TEXT = " ".join(HOSTILE)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, driven over the DevTools protocol."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium here (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


LENGTHS = {
    "lengths": [12, 14, 14, 30],
    "labelled_share": 0.4,
    "padding_share": 0.1,
    "looked_at": 4,
    "truncated": 2,
    "skipped": {},
}


def points(steps: int = 40, scale: float = 1.0) -> list[dict[str, Any]]:
    """What a run logs: a training loss at every step, a validation loss at every tenth."""
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = scale * (0.3 + 2 * math.exp(-step / 8))
        found.append({"step": step, "loss": loss, "learning_rate": 1e-3 * (1 - step / steps), "tokens_per_second": 900})
        if step % 10 == 0:
            found.append({"step": step, "eval_loss": loss + 0.05})
    return found


def record(name: str = "mine", *, rank: int = 8, **changes: Any) -> RunRecord:
    """A finished run."""
    manifest = {
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:14:05+00:00",
        "provenance": {
            "loraga": "0.1.0",
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "peft": "0.21.2"},
            "command": ["/usr/bin/python3", "/usr/bin/loraga", "train", "recipe=quickstart", f"rank={rank}"],
            "git": {"commit": "0123abcd", "modified": True},
        },
        "data": {"train": {"rows": 3168, "sha256": "5e" * 32}},
        "files": {"adapter_model.safetensors": {"size": 12, "sha256": "ab" * 32}},
        "working_folder": {"path": "/home/me", "from_run": "../.."},
        "adapter_rank": rank,
        "steps": 40,
        "learning_rate": 1e-3,
        "training_seconds": 99.0,
        "training_loss": 0.31,
        "validation_loss": 0.35 + rank / 1000,
        "peak_memory_bytes": 3 * 2**30,
        "forecast_peak_memory_bytes": 2**31,
    }
    config = {"name": name, "rank": rank, "method": {"name": "lora_ga"}, "model": {"path": "base"}, "seed": 42}
    return RunRecord(
        **{"name": name, "folder": Path("runs") / name, "manifest": manifest, "config": config, "points": points()}
        | changes
    )


LAYERS = tuple(f"model.layers.{block}.self_attn.{kind}" for block in range(3) for kind in ("q_proj", "v_proj"))


def gradient(names: Sequence[str] = LAYERS, *, key: str = "0a1b", rank: int = 4) -> dict[str, Any]:
    """A gradient whose captured energy is known: rank/8 in every layer but the last, and half of that there."""
    layers = {
        name: {
            "shape": [48, 32],
            "norm": 2.0,
            "singular": [2.0**-number for number in range(8)],
            "energy": {str(rank): rank / (16 if name == names[-1] else 8) for rank in (1, 2, 4, 8)},
            "alignment": {str(rank): 1 - 0.02 * number for rank in (1, 2, 4, 8)},
        }
        for number, name in enumerate(names)
    }
    return {"key": key, "rank": rank, "capacity": 16, "directions_per_rank": 2, "rows": 64, "layers": layers}


def inspection(names: Sequence[str] = LAYERS, *, norm: float = 1.0, **of_layers: Any) -> dict[str, Any]:
    """The inspection of an adapter of rank 4, whose norms are multiples of ``norm``."""
    layers = {
        name: {
            "shape": [48, 32],
            "rank": 4,
            "norm": norm * (number + 1),
            "singular": [1.0, 0.5, 0.25, 0.125],
            "stable_rank": 1.5,
            "effective_rank": 2.5,
            "within_start": {"left": 0.5, "right": 0.25, "both": 0.125, "either": 0.625},
            "within_gradient": None,
            "cut": {"1": 0.5, "2": 0.25, "4": 0.0},
            "weight_norm": None,
            "relative_norm": None,
            "amplification": None,
            "intruders": None,
            **of_layers,
        }
        for number, name in enumerate(names)
    }
    return {"format": 1, "of": {}, "gradient": None, "adapter": {"layers": layers, "totals": {}}}


def answer(number: int, *, correct: bool | None = True, text: str = "4", **changes: Any) -> Answer:
    """An answer to the question of a number."""
    verdict = {True: "right", False: "wrong", None: "rated 7 of 10"}[correct]
    asked = Answer(f"q{number}", f"question {number}", f"What is {number} + 1?", text, "4", verdict, correct)
    return replace(asked, **changes)


def hostile_report() -> Report:
    """A report in which every text is hostile."""
    text = HOSTILE_TEXT
    result = {"values": {text: 0.5}, "options": {"task": text}, "rows": 2, "split": text, "time": text}
    result["shares"], result["lower_is_better"], result["unranked"] = [], [], []
    answers = [Answer(f"{text} {number}", text, text, text, text, text, False, number == 1) for number in range(2)]
    names = [f"{text.replace('.', '')}.{number}.{kind}" for number in range(2) for kind in (HOSTILE[0], HOSTILE[1])]

    def run(number: int) -> RunRecord:
        plain = record(f"{number} {text}")
        manifest = {
            **plain.manifest,
            "provenance": {"loraga": text, "packages": {text: text}, "command": ["loraga", "train", text], "git": None},
            "working_folder": {"path": text},
            "data": {text: {"sha256": text, "number": number}},
            "started": text,
        }
        return record(
            plain.name,
            manifest=manifest,
            config={"method": {"name": text}, "model": {"path": text}, text: [text], "number": number},
            evaluations=[result],
            answers=[Answered(text, text, answers, text, 1)],
            gradient=gradient(names, key=f"{number} {text}"),
            inspection=inspection(names),
            rows=[
                ShownRow([Segment(text, False), Segment(text, True), Segment(text, True, special=True)], 12, 3, text)
            ],
            lengths={**LENGTHS, "skipped": {text: 1}},
            absent={"rows": text, "gradient": text, "inspection": text, "answers": text},
        )

    table = TableRecord(text, ["", text], [[text, text]], [text])
    return Report(text, [run(1), run(2)], [table])
