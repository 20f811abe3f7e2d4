"""The options of the runs: what differs first, then all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.html.plain import compare
from lora_ga_cli.report.html.record import RunRecord
from lora_ga_cli.report.html.section import Section, SectionContent

NAMES = ("name", "overwrite")
"""Options that differ whenever several runs are made, and say nothing about them."""


@SECTIONS.register("configuration")
class Configuration(Section):
    name, title, position = "configuration", "Configuration", 70

    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        configs = [without_names(run.config) for run in runs]
        if not any(configs):
            return None
        found = compare([run.name for run in runs], configs)
        texts = yaml.safe_dump(dict(runs[0].config), sort_keys=False, allow_unicode=True) if len(runs) == 1 else ""
        return SectionContent({"found": found, "yaml": texts, "options": len(found.same) + len(found.different)})


def without_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the options that tell runs apart and nothing else."""
    return {key: value for key, value in config.items() if key not in NAMES}
