"""The gradient that runs began with: how much of it a first step of each rank can follow, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html.heatmap import Figure, Scale, figure, scale_of, that_fit, values_by_rank
from lora_ga_cli.report.html.number_table import NumberTable
from lora_ga_cli.report.html.record import RunRecord, absences
from lora_ga_cli.report.html.section import Section, SectionContent
from lora_ga_cli.report.html.spectra import Spectrum, spectra

ENERGY, ALIGNMENT, NORM = "gradient-energy", "gradient-alignment", "gradient-norm"
MOST_TABLE_LINES = 250
Content = Mapping[str, Any]
"""`RunRecord.gradient`."""


@SECTIONS.register("gradient")
class Gradient(Section):
    """Runs with the same gradient and rank share it."""

    name = "gradient"
    title = "The gradient by layer and rank"
    position = 30
    styles = ("heatmap.css",)
    scripts = ("heatmap.js",)

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        groups: dict[str, Content] = {}
        for names, content in _groups(runs):
            groups[", ".join(names)] = content
        absent = absences(runs, "gradient")
        if not groups and not absent:
            return None
        shown = {name: groups[name] for name in that_fit(groups, lambda content: len(content["layers"]))}
        start = start_rank(next(iter(shown.values()))) if shown else 0
        figures = _figures(shown, start) if shown else []
        every = sorted({rank for content in shown.values() for rank in ranks_of(content)})
        values = {
            "about": [(name, _about(content)) for name, content in shown.items()],
            "figures": figures,
            "start": start,
            "position": every.index(start) if shown else 0,
            "last": len(every) - 1,
            "overall": overall_table(shown) if shown else None,
            "tables": [layer_table(name, content) for name, content in shown.items()],
            "spectra": {name: _spectra(content) for name, content in shown.items()},
            "directions": next(iter(shown.values()))["directions_per_rank"] if shown else 0,
            "more": list(groups)[len(shown) :],
            "absent": absent,
            "several": len(shown) > 1,
        }
        layers = [content["layers"] for content in shown.values()]
        maps = values_by_rank(ENERGY, layers, every, lambda layer, rank: layer["energy"].get(str(rank)))
        maps |= values_by_rank(ALIGNMENT, layers, every, lambda layer, rank: layer["alignment"].get(str(rank)))
        return SectionContent(values, {"ranks": every, "start": start, "maps": maps} if shown else None)


def ranks_of(content: Content) -> list[int]:
    """The ranks for which a gradient has values."""
    first = next(iter(content["layers"].values()))
    return sorted(int(rank) for rank in first["energy"])


def start_rank(content: Content) -> int:
    """The rank of the run, or the nearest one that the gradient has values for."""
    return min(ranks_of(content), key=lambda rank: abs(rank - int(content["rank"])))


def _groups(runs: Sequence[RunRecord]) -> list[tuple[list[str], Content]]:
    found: dict[tuple[Any, ...], tuple[list[str], Content]] = {}
    for run in runs:
        if run.gradient is not None and run.gradient["layers"]:
            gradient = run.gradient
            key = (gradient["key"], gradient["directions_per_rank"], gradient["rank"])
            found.setdefault(key, ([], gradient))[0].append(run.name)
    return list(found.values())


def _about(content: Content) -> str:
    rows = f" from {content['rows']:,} rows" if content["rows"] else ""
    whose = "The largest rank of the run is" if content.get("varies") else "The run has rank"
    return (
        f"Gradient {content['key']}, estimated{rows}: {len(content['layers'])} layers, "
        f"{content['capacity']} singular vectors of each. {whose} {content['rank']}."
    )


def _figures(shown: Mapping[str, Content], rank: int) -> list[Figure]:
    def values(measure: str) -> dict[str, dict[str, float | None]]:
        return {
            name: {layer: one[measure].get(str(rank)) for layer, one in content["layers"].items()}
            for name, content in shown.items()
        }

    layers = [one for content in shown.values() for one in content["layers"].values()]
    every = [value for one in layers for value in one["alignment"].values()]
    figures = [
        figure(
            ENERGY,
            "Captured energy",
            "The share of ‖G‖² that a first step of this rank can follow.",
            values("energy"),
            scale=Scale(0.0, 1.0, share=True),
            share=True,
            changes=True,
        )
    ]
    if min(every) < 1:
        figures.append(
            figure(
                ALIGNMENT,
                "Alignment",
                "How well the first step follows the best one of this rank; below 100% where the estimate is coarse.",
                values("alignment"),
                scale=scale_of(every, share=True),
                share=True,
                changes=True,
            )
        )
    norms = {name: {layer: one["norm"] for layer, one in content["layers"].items()} for name, content in shown.items()}
    about = "The Frobenius norm of the gradient, in units of loss per unit of weight."
    return [*figures, figure(NORM, "‖G‖", about, norms)]


def _columns(content: Content) -> list[int]:
    """The ranks of tables: powers of two, the run's, and the largest."""
    ranks = ranks_of(content)
    powers = {rank for rank in ranks if rank & (rank - 1) == 0}
    return sorted({*powers, start_rank(content), ranks[-1]})


def overall_table(shown: Mapping[str, Content]) -> NumberTable:
    """The share of the gradient of all layers together that each rank follows, and that of the worst layer."""
    ranks = sorted({rank for content in shown.values() for rank in _columns(content)})
    rows = []
    for name, content in shown.items():
        layers = content["layers"].values()
        whole = sum(one["norm"] ** 2 for one in layers)
        have = ranks_of(content)
        together, lowest = [], []
        for rank in ranks:
            if rank not in have or not whole:
                together.append("–")
                lowest.append("–")
                continue
            followed = sum(one["energy"][str(rank)] * one["norm"] ** 2 for one in layers)
            together.append(f"{followed / whole:.1%}")
            lowest.append(f"{min(one['energy'][str(rank)] for one in layers):.1%}")
        label = f"{name}: " if len(shown) > 1 else ""
        rows += [[f"{label}all layers together", *together], [f"{label}lowest layer", *lowest]]
    caption = "Share of ‖G‖² that a first step of rank r can follow"
    return NumberTable(caption, ["", *(f"r = {rank}" for rank in ranks)], rows)


def layer_table(name: str, content: Content) -> NumberTable:
    """Every layer with its shape, norm, and energy by rank."""
    ranks = _columns(content)
    start = str(start_rank(content))
    rows = [
        [
            layer,
            "×".join(str(side) for side in one["shape"]),
            f"{one['norm']:.3g}",
            *(f"{one['energy'][str(rank)]:.1%}" for rank in ranks),
            f"{one['alignment'][start]:.1%}",
        ]
        for layer, one in content["layers"].items()
    ]
    headings = ["layer", "shape", "‖G‖", *(f"r = {rank}" for rank in ranks), f"alignment, r = {start}"]
    return NumberTable(name, headings, rows[:MOST_TABLE_LINES], left_out=max(len(rows) - MOST_TABLE_LINES, 0))


def _spectra(content: Content) -> list[Spectrum]:
    shares = {
        layer: [value**2 / one["norm"] ** 2 for value in one["singular"]]
        for layer, one in content["layers"].items()
        if one["norm"]
    }
    return spectra(shares)
