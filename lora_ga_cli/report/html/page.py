"""Puts the parts of a report together into one HTML file.

Names, rows and answers are text that others wrote. Templates escape every value, and the page's Content-Security-Policy
lets nothing run but the scripts of this package, which it names by their digests, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lora_ga_cli.files import atomic_file
from lora_ga_cli.registry import SECTIONS
from lora_ga_cli.report.console import duration, number, reason, size, step, warn
from lora_ga_cli.report.html.record import Report
from lora_ga_cli.report.html.section import Section, SectionContent
from lora_ga_cli.report.provenance import now, version

HERE = Path(__file__).parent
FILE = "report.html"
"""The name of a report in the folder of what it shows."""
STYLES = ("report.css",)
SCRIPTS = ("report.js",)
"""The files in ``static/`` that every page has."""
UNSAFE_IN_SCRIPT = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
"""Signs that could end a script element, or a line of JavaScript, as JSON may write them too."""


@dataclass(frozen=True)
class Part:
    """A section with what it shows."""

    section: Section
    content: SectionContent
    body: Markup


def write_page(report: Report, file: Path) -> int:
    """Writes a report, atomically; returns its size in bytes."""
    # text of a model may hold half a surrogate pair, which no file can
    content = render(report).encode("utf-8", "replace")
    with atomic_file(file) as temporary:
        temporary.write_bytes(content)
    return len(content)


def write_beside(run: Path, make: Callable[[], Report]) -> None:
    """Writes the report of a run that is complete without it: if that fails, the reason is a warning.

    Args:
        run: the run's folder, into which it is written.
        make: collects what it shows.
    """
    try:
        write_page(make(), run / FILE)
    except OSError as error:
        warn(
            f"no report was written: {run / FILE}: {reason(error)}; loraga report {run} tries it again, and with "
            "--output FILE writes it elsewhere"
        )
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        warn(f"no report was written ({what}); loraga report {run} tries it again")
    else:
        step("saved", f"report: {run / FILE}")


def render(report: Report) -> str:
    """The text of the page."""
    parts = [
        Part(section, content, _body(section, content))
        for section in sections()
        if (content := section.of(report)) is not None
    ]
    styles = _static([*STYLES, *(name for part in parts for name in part.section.styles)])
    scripts = _static([*SCRIPTS, *(name for part in parts for name in part.section.scripts)])
    return (
        _environment()
        .get_template("base.html")
        .render(
            report=report,
            parts=parts,
            policy=policy(scripts, styles),
            styles=[Markup(text) for text in styles],
            scripts=[Markup(text) for text in scripts],
            loraga=version("loraga"),
            time=now(),
        )
    )


def sections() -> list[Section]:
    """All registered parts, in the order of a page."""
    found: list[Section] = [SECTIONS[name]() for name in SECTIONS.names()]
    return sorted(found, key=lambda section: section.position)


def policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The Content-Security-Policy under which nothing but these scripts and styles has an effect.

    (Styles that a script sets on an element do not fall under it; style attributes in the page do.)
    """
    return (
        f"default-src 'none'; script-src {_digests(scripts)}; style-src {_digests(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def as_json(value: Any) -> Markup:
    """Plain data as JSON that can stand inside of a script element. Numbers that JSON does not have are null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.translate(UNSAFE_IN_SCRIPT))


def _body(section: Section, content: SectionContent) -> Markup:
    template = _environment().get_template(f"sections/{section.name}.html")
    return Markup(template.render(content.values, section=section))  # escaped by the template


def _digests(texts: Sequence[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _static(names: Sequence[str]) -> list[str]:
    """The contents of files of ``static/``, each once, with the licence of those that others wrote."""
    return [_licence(name) + (HERE / "static" / name).read_text(encoding="utf-8") for name in dict.fromkeys(names)]


def _licence(name: str) -> str:
    file = HERE / "static" / f"{name}.LICENSE"
    return f"/*\n{file.read_text(encoding='utf-8')}*/\n" if file.exists() else ""


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"as_json": as_json, "number": number, "size": size, "duration": duration}
    return environment
