"""What a part of a report is.

A part is one class in one file of ``sections/``, with the template ``templates/sections/NAME.html`` beside it:

    @SECTIONS.register("loss")
    class Loss(Section): ...

A template gets its content's values, and escapes all of them. It works without JavaScript: a script only adds to what
is there, and reads its data from the page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lora_ga_cli.report.html.record import Report, RunRecord


@dataclass(frozen=True)
class SectionContent:
    """What a part shows.

    Args:
        values: the variables of its template.
        data: plain data for its script, which finds it as JSON in the element of the id ``data-NAME``; None for none.
    """

    values: Mapping[str, Any]
    data: Any = None


class Section(ABC):
    """A part of a report.

    Attributes:
        name: under which it is registered; its anchor in the page, and the name of its template.
        title: its heading.
        position: parts are shown in the order of this number.
        scripts, styles: names of files in ``static/`` that it needs beside those of every page. Each of them is in the
            page once.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    position: ClassVar[int]
    scripts: ClassVar[Sequence[str]] = ()
    styles: ClassVar[Sequence[str]] = ()

    def of(self, report: Report) -> SectionContent | None:
        """What it shows of a report; None if there is nothing to show."""
        return self.content(report.runs) if report.runs else None

    @abstractmethod
    def content(self, runs: Sequence[RunRecord]) -> SectionContent | None:
        """What it shows of some runs, of which there is at least one; None if there is nothing to show."""
