"""What adapters learned, by layer: figures of their inspections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from lora_ga_cli.inspection.layer import totals
from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html.heatmap import Figure, figure, scale_of, that_fit, values_by_rank
from lora_ga_cli.report.html.layers import grids
from lora_ga_cli.report.html.number_table import NumberTable
from lora_ga_cli.report.html.record import RunRecord, absences
from lora_ga_cli.report.html.section import Section, SectionContent

MOST_TABLE_LINES = 250
CUT = "inspection-cut"
Layer = Mapping[str, Any]
Totals = Mapping[str, Any]
TOGETHER = (
    "‖ΔW‖ of several layers is the root of the sum of squares, and shares are weighted by ‖ΔW‖². Ranks and "
    "amplification are means, intruder dimensions a sum."
)
"""What the lines of the summary are, in which several layers are one."""


@dataclass(frozen=True)
class Measure:
    """A figure by layer.

    Args:
        read: its value of a layer; None where it was not computed.
        together: its value of several layers together, from their `totals`; by default the mean.
    """

    id: str
    title: str
    about: str
    read: Callable[[Layer], float | None]
    share: bool = False
    unit: str = ""
    together: Callable[[Totals], float | None] | None = None


def _within(kind: str) -> Callable[[Layer], float | None]:
    def read(layer: Layer) -> float | None:
        found = layer.get(kind)
        return None if found is None else found.get("either", found["both"])

    return read


def _either(kind: str) -> Callable[[Totals], float | None]:
    def read(total: Totals) -> float | None:
        return None if total[kind] is None else total[kind]["either"]

    return read


def _intruders(layer: Layer) -> float | None:
    found = layer.get("intruders")
    return None if found is None else float(found["count"])


MEASURES = (
    Measure(
        "norm",
        "‖ΔW‖",
        "The Frobenius norm of the change.",
        lambda layer: layer["norm"],
        together=lambda total: total["norm"],
    ),
    Measure(
        "relative-norm",
        "‖ΔW‖ / ‖W‖",
        "The change in units of the weight that it is added to.",
        lambda layer: layer.get("relative_norm"),
        share=True,
        together=lambda total: total["relative_norm"],
    ),
    Measure(
        "effective-rank",
        "Effective rank",
        "The exponential of the entropy of the singular values: how many directions the change uses.",
        lambda layer: layer["effective_rank"],
    ),
    Measure(
        "stable-rank",
        "Stable rank",
        "‖ΔW‖² over its largest squared singular value.",
        lambda layer: layer["stable_rank"],
    ),
    Measure(
        "within-start",
        "Stayed where it began",
        "The share of ‖ΔW‖² in the column space of the initial B or the row space of the initial A.",
        _within("within_start"),
        share=True,
        together=_either("within_start"),
    ),
    Measure(
        "within-gradient",
        "Stayed in the gradient's directions",
        "The same for the singular directions of the gradient that initialized the layer.",
        _within("within_gradient"),
        share=True,
        together=_either("within_gradient"),
    ),
    Measure(
        "amplification",
        "Amplification",
        "‖ΔW‖ over ‖UᵀWV‖, with U and V the singular vectors of ΔW (LoRA, section 7.3).",
        lambda layer: layer.get("amplification"),
    ),
    Measure(
        "intruders",
        "Intruder dimensions",
        "Leading singular vectors of the tuned weight that are close to none of the original weight.",
        _intruders,
        unit="vectors",
        together=_intruders,
    ),
)


@SECTIONS.register("inspection")
class Inspection(Section):
    name = "inspection"
    title = "What was learned, by layer"
    position = 40
    styles = ("heatmap.css",)
    scripts = ("heatmap.js",)

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        order = [name for run in runs if run.gradient for name in run.gradient["layers"]]
        adapters = {run.name: layers for run in runs if (layers := _layers(run, order))}
        absent = absences(runs, "inspection")
        if not adapters and not absent:
            return None
        shown = {name: adapters[name] for name in that_fit(adapters, len)}
        ranks = sorted({rank for layers in shown.values() for rank in _cut_ranks(layers)})
        start = ranks[len(ranks) // 2] if ranks else 0
        values = {
            "figures": _figures(shown),
            "cut": _cut_figure(shown, start) if ranks else None,
            "start": start,
            "position": ranks.index(start) if ranks else 0,
            "last": len(ranks) - 1,
            "summary": _summary(shown),
            "tables": [_layer_table(name, layers) for name, layers in shown.items()],
            "more": list(adapters)[len(shown) :],
            "absent": absent,
            "several": len(shown) > 1,
            "has_base": any(layer.get("intruders") for layers in shown.values() for layer in layers.values()),
        }
        data = (
            {"ranks": ranks, "start": start, "maps": values_by_rank(CUT, shown.values(), ranks, _cut)}
            if ranks
            else None
        )
        return SectionContent(values, data)


def _layers(run: RunRecord, order: Sequence[str]) -> dict[str, Layer]:
    """The layers of a run's adapter.

    Args:
        order: names of layers in their order in the model, as far as it is known.
    """
    adapter = None if run.inspection is None else run.inspection.get("adapter")
    if not adapter:
        return {}
    layers = adapter["layers"]
    return {name: layers[name] for name in dict.fromkeys([*order, *layers]) if name in layers}


def _measured(shown: Mapping[str, Mapping[str, Layer]]) -> list[Measure]:
    """The measures that any layer has."""
    return [
        measure
        for measure in MEASURES
        if any(measure.read(layer) is not None for layers in shown.values() for layer in layers.values())
    ]


def _figures(shown: Mapping[str, Mapping[str, Layer]]) -> list[Figure]:
    return [
        figure(
            f"inspection-{measure.id}",
            measure.title,
            measure.about,
            {run: {name: measure.read(layer) for name, layer in layers.items()} for run, layers in shown.items()},
            unit=measure.unit,
            share=measure.share,
        )
        for measure in _measured(shown)
    ]


def _cut_ranks(layers: Mapping[str, Layer]) -> set[int]:
    """The ranks below the adapter's to which a cut was measured."""
    largest = max(layer["rank"] for layer in layers.values())
    return {int(rank) for layer in layers.values() for rank in layer["cut"] if int(rank) < largest}


def _cut(layer: Layer, rank: int) -> float | None:
    """The relative error of a cut; nothing is lost where the layer has no higher rank."""
    return 0.0 if rank >= layer["rank"] else layer["cut"].get(str(rank))


def _cut_figure(shown: Mapping[str, Mapping[str, Layer]], rank: int) -> Figure:
    every = [_cut(layer, one) for layers in shown.values() for one in _cut_ranks(layers) for layer in layers.values()]
    return figure(
        CUT,
        "Error of a cut",
        "‖ΔW − ΔWᵣ‖ / ‖ΔW‖ of the best change of rank r.",
        {run: {name: _cut(layer, rank) for name, layer in layers.items()} for run, layers in shown.items()},
        scale=scale_of([0.0, *every], share=True),
        share=True,
        changes=True,
    )


def _summary(shown: Mapping[str, Mapping[str, Layer]]) -> NumberTable:
    """All layers of each run together; of one run, also those of each kind."""
    measures = _measured(shown)
    groups = {name: list(layers.values()) for name, layers in shown.items()}
    if len(shown) == 1:
        ((_, layers),) = shown.items()
        kinds: dict[str, list[Layer]] = {}
        for grid in grids(layers):
            for (kind, _), names in grid.cells.items():
                label = f"{grid.title}: {kind}" if grid.title else kind
                kinds.setdefault(label, []).extend(layers[name] for name in names)
        groups = {**kinds, "all layers": list(layers.values())}
    rows = [[label, str(len(layers)), *_together(measures, layers)] for label, layers in groups.items()]
    return NumberTable(TOGETHER, ["", "layers", *(measure.title for measure in measures)], rows)


def _together(measures: Sequence[Measure], layers: Sequence[Layer]) -> list[str]:
    total = totals({str(number): layer for number, layer in enumerate(layers)})
    return [
        _text(measure, _mean(measure, layers) if measure.together is None else measure.together(total))
        for measure in measures
    ]


def _mean(measure: Measure, layers: Sequence[Layer]) -> float | None:
    known = [value for layer in layers if (value := measure.read(layer)) is not None]
    return fmean(known) if known else None


def _text(measure: Measure, value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if measure.share else f"{value:.3g}"


def _layer_table(name: str, layers: Mapping[str, Layer]) -> NumberTable:
    measures = _measured({name: layers})
    ranks = sorted(_cut_ranks(layers))
    rows = [
        [
            layer,
            "×".join(str(side) for side in one["shape"]),
            str(one["rank"]),
            *(_text(measure, measure.read(one)) for measure in measures),
            *(f"{_cut(one, rank):.1%}" if _cut(one, rank) is not None else "–" for rank in ranks),
        ]
        for layer, one in layers.items()
    ]
    headings = ["layer", "shape", "rank", *(measure.title for measure in measures)]
    headings += [f"cut to r = {rank}" for rank in ranks]
    return NumberTable(name, headings, rows[:MOST_TABLE_LINES], left_out=max(len(rows) - MOST_TABLE_LINES, 0))
