"""The measure ``convergence``: how fast chains of low-rank updates reduce an error, beside what theory predicts.

No language model is trained: the problems are small, and their constants are known (`lora_ga_cli.theory`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ga_cli.registry import MEASURES
from lora_ga_cli.reproduce.measures.base import Cost
from lora_ga_cli.reproduce.measures.model_free import ModelFreeMeasure
from lora_ga_cli.reproduce.theory_options import ConvergenceOptions

MEMORY = 2**24
"""Bytes that a cell needs at most, in round numbers: its problems have a few hundred numbers for each chain."""
CALLS = 300
"""Operators that a gradient step launches, roughly, and those that the draw of one frozen factor does."""
CALLS_OF_A_DRAW = 6


@MEASURES.register("convergence")
class Convergence(ModelFreeMeasure):
    """The error of a chain, f - f*, as a mean over draws.

    - ``log_error``: log10 of the last error over the first; ``predicted_log_error`` is what theory says of it.
    - ``factor``: the mean over links and draws of what a link multiplies the error by; ``factor_error`` is its standard
      error. ``predicted_factor`` is an upper bound, and exact for ``problem=distance`` with ``solver=step``.
    - ``squares``: the mean of ‖∇f‖² over the links, relative to the first; ``predicted_squares`` is an upper bound.

    What theory does not predict is None, and so are the factor and ``squares`` of a chain that diverged.
    """

    Options = ConvergenceOptions

    def compute(self, config: Any) -> dict[str, Any]:
        from lora_ga_cli.report.progress import counting
        from lora_ga_cli.reproduce.theory_cells import measured

        with counting("chains", "links", config.links) as done:
            return measured(config, done)

    def forecast(self, inputs: Any, pace: Any) -> Cost:
        """The time of the operators, which are small."""
        steps = inputs.links * (inputs.steps if inputs.solver == "descent" else 1) * inputs.clients
        drawn = inputs.links * inputs.draws if inputs.restarts and inputs.trains != "weight" else 0
        return Cost(MEMORY, pace.call * (CALLS * steps + CALLS_OF_A_DRAW * drawn))

    def draw(self, rows: Mapping[str, tuple[Any, dict[str, Any]]], folder: Path, title: str) -> list[Path]:
        """One figure for each problem: the errors of its rows by link, and what theory predicts."""
        from lora_ga_cli.report.figures import Convergences, convergences

        lines: dict[str, Convergences] = defaultdict(dict)
        for row, (options, values) in rows.items():
            lines[options.problem][row.split(": ", 1)[-1]] = (values["errors"], values["predicted_errors"])
        files = []
        for problem, of_problem in lines.items():
            files.append(folder / f"errors_{problem}.png")
            convergences(of_problem, files[-1], title=f"{title}: {problem}")
        return files
