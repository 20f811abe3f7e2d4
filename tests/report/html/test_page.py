"""The page is one file that loads nothing, and text of others stays text in it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.report.html.page import HERE, as_json, render, sections, write_page
from lora_ga_cli.report.html.record import Report, RunRecord
from tests.report.html.conftest import HOSTILE, hostile_report, record

KNOWN_LINKS = re.compile(r"#[a-z]+|data:,")
LARGEST = 300_000
"""Bytes of the report of a usual run; a report of many runs may have 1.5 MB."""


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of each element that holds only text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag in self.texts:
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.texts:
            self.texts[self._open][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def hostile() -> Elements:
    return Elements(render(hostile_report()))


def test_every_part_has_a_template_and_a_place_of_its_own() -> None:
    found = sections()
    assert found[0].name == "result"
    assert len({part.position for part in found}) == len(found)
    assert all((HERE / "templates" / "sections" / f"{part.name}.html").exists() for part in found)


@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_the_policy_names_exactly_the_scripts_and_styles_of_the_page(kind: str) -> None:
    page = Elements(render(Report("mine", [record()]) if kind == "usual" else hostile_report()))
    policy = next(item["content"] for item in page.of("meta") if item.get("http-equiv") == "Content-Security-Policy")
    directives = {name: values for name, *values in (item.split() for item in (policy or "").split(";"))}
    assert directives == {
        "default-src": ["'none'"],
        "script-src": digests(programs(page)),
        "style-src": digests(page.texts["style"]),
        "img-src": ["data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }


def digests(texts: list[str]) -> list[str]:
    encoded = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return [f"'sha256-{digest}'" for digest in encoded]


def programs(page: Elements) -> list[str]:
    """The scripts of a page that run."""
    scripts = zip(page.texts["script"], page.of("script"), strict=True)
    return [text for text, attributes in scripts if attributes.get("type") != "application/json"]


def test_hostile_text_makes_no_script_no_element_no_attribute_and_no_link(hostile: Elements) -> None:
    own = [file.read_text(encoding="utf-8") for file in (HERE / "static").iterdir()]
    assert all(any(text.endswith(script) for script in own) for text in programs(hostile))
    assert {tag for tag, _ in hostile.elements}.isdisjoint({"img", "iframe", "object", "embed", "form", "base", "b1"})
    for tag, attributes in hostile.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")], tag
        assert KNOWN_LINKS.fullmatch(attributes.get("href") or "#main"), attributes


def test_hostile_text_is_shown_as_it_is() -> None:
    text = render(hostile_report())
    page = Elements(text)
    assert all(part in page.texts["title"][0] for part in HOSTILE)
    assert "{{ 7 * 7 }}" in text
    assert "49 {% raw" not in text


def test_data_of_a_script_is_json_that_cannot_end_its_element() -> None:
    value = {"text": list(HOSTILE), "numbers": [1.5, float("nan"), float("inf")]}
    text = str(as_json(value))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"text": list(HOSTILE), "numbers": [1.5, None, None]}


def test_half_of_a_character_does_not_keep_a_report_from_being_written(tmp_path: Path) -> None:
    length = write_page(Report("half \ud83d", [record("half \ud83d")]), tmp_path / "report.html")
    written = (tmp_path / "report.html").read_bytes()
    assert len(written) == length
    assert "half ?" in written.decode()


def test_a_usual_report_is_small_and_scripts_are_in_it_once() -> None:
    text = render(Report("mine", [record()]))
    assert len(text.encode()) < LARGEST
    assert text.count("(v1.6.31)") == 1
    assert text.count("Copyright (c) 2022 Leon Sorokin") == 1


def test_no_own_script_or_style_can_end_its_element() -> None:
    for file in (HERE / "static").iterdir():
        assert not re.search(r"</script|</style|<!--", file.read_text(encoding="utf-8"), re.IGNORECASE), file.name


def test_a_run_that_has_hardly_begun_is_shown_too() -> None:
    run = RunRecord("young", Path("runs/young"), {"format": 2}, {"rank": 4})
    text = render(Report("young", [run]))
    assert "has not finished: nothing is logged yet" in text
    assert 'id="loss"' not in text
