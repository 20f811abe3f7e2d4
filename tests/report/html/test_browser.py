"""The page in a real browser: nothing of others' text runs, the console stays empty, and its controls work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_ga_cli.report.html.page import write_page
from lora_ga_cli.report.html.record import Answered, Report, RunRecord
from tests.report.html.conftest import HOSTILE, answer, gradient, hostile_report, inspection, points, record

WIDTHS = (1400, 390)
"""Pixels of a desktop's window, and of a phone."""


class Visit:
    """A page that is open, with what its console said and what it asked for."""

    def __init__(self, page: Any):
        self.page = page
        self.console: list[str] = []
        self.requests: list[str] = []
        self.blocked: list[str] = []
        page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.console.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.blocked.append(f"{request.url}: {request.failure}"))
        page.on("dialog", lambda dialog: (self.console.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def width(self) -> int:
        """Pixels that the page takes, which are more than the window has if it can be scrolled to the side."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))


@pytest.fixture
def visit(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    """Writes a report and opens it from its file."""
    contexts = []

    def open_report(report: Report, width: int = 1400, **options: Any) -> Visit:
        file = tmp_path / "report.html"
        write_page(report, file)
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        found = Visit(context.new_page())
        found.page.goto(file.as_uri())
        return found

    yield open_report
    for context in contexts:
        context.close()


def several() -> Report:
    return Report("3 runs", [record(f"r{rank}", rank=rank, points=points(40, rank / 8)) for rank in (16, 4, 8)])


def test_nothing_of_hostile_text_runs_and_all_of_it_is_shown(visit: Callable[..., Visit]) -> None:
    opened = visit(hostile_report())
    page = opened.page
    page.evaluate("""() => {
        for (const item of document.querySelectorAll("details")) item.open = true;
        for (const item of document.querySelectorAll("main button, main a, main input, main option")) item.click();
        for (const item of document.querySelectorAll("main *")) item.dispatchEvent(new MouseEvent("mouseover"));
    }""")
    page.mouse.move(700, 400)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert opened.width() == width
    assert page.evaluate("window.ran") is None
    assert opened.console == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [page.url.partition("#")[0]]
    shown = page.evaluate("document.body.textContent")
    assert all(text in shown for text in HOSTILE)


def test_a_script_that_is_not_the_page_s_own_does_not_run(visit: Callable[..., Visit]) -> None:
    """The policy holds even where text had not been escaped."""
    opened = visit(Report("mine", [record()]))
    opened.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.ran = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<p onclick='window.ran = 1' id='trap'>x</p>");
        document.body.insertAdjacentHTML("beforeend", "<img src='https://example.com/x.png'>");
        document.getElementById("trap").click();
    }""")
    assert opened.page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in line for line in opened.console) == 3
    assert opened.blocked == ["https://example.com/x.png: csp"]


def test_charts_can_be_hovered_zoomed_and_filtered(visit: Callable[..., Visit]) -> None:
    opened = visit(several())
    page = opened.page
    plot, area = page.locator("#chart-loss .plot"), page.locator("#chart-loss .u-over")
    plot.scroll_into_view_if_needed()
    box = area.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    tip = page.locator("#chart-loss .tip")
    assert tip.inner_text().startswith("step ")
    assert all(f"r{rank}, training" in tip.inner_text() for rank in (16, 4, 8))

    def steps_shown() -> str:
        """What the pointer at both ends of the chart tells."""
        found = []
        for share in (0.002, 0.998):
            page.mouse.move(box["x"] + box["width"] * share, box["y"] + 20)
            found.append(tip.inner_text().splitlines()[0])
        return ", ".join(found)

    assert steps_shown() == "step 1, step 40"
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 50, steps=3)
    page.mouse.up()
    assert steps_shown() == "step 11, step 20"
    plot.focus()
    page.keyboard.press("0")
    assert steps_shown() == "step 1, step 40"

    page.get_by_role("button", name="r16").first.click()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    assert "r16" not in tip.inner_text()
    page.locator("#chart-loss").get_by_label("logarithmic").check()
    assert opened.console == []


def test_a_table_is_sorted_by_a_click_and_by_the_keyboard(visit: Callable[..., Visit]) -> None:
    page = visit(several()).page

    def column() -> list[str]:
        return page.locator("#table tbody th").all_inner_texts()

    assert column() == ["r16", "r4", "r8"]
    heading = page.get_by_role("button", name="validation loss")
    heading.click()
    assert column() == ["r4", "r8", "r16"]
    heading.focus()
    page.keyboard.press("Enter")
    assert column() == ["r16", "r8", "r4"]


def with_answers(name: str, right: set[int]) -> RunRecord:
    answers = [answer(number, correct=number in right, text=f"{name} says {number}") for number in range(6)]
    parts = {"gradient": gradient(), "inspection": inspection()}
    return record(name, answers=[Answered("sums", "sums", answers, "sums-1.json")], **parts)


def test_answers_can_be_searched_and_reduced_to_what_differs_or_is_wrong(visit: Callable[..., Visit]) -> None:
    opened = visit(Report("2 runs", [with_answers("a", {0, 1, 2}), with_answers("b", {2, 3})]))
    part = opened.page.locator("#answers")

    def shown() -> list[str]:
        return part.locator(".question:visible .question-title").all_inner_texts()

    def titles(*numbers: int) -> list[str]:
        return [f"question {number}" for number in numbers]

    assert shown() == titles(0, 1, 2, 3, 4, 5)
    part.get_by_label("Only what differs").check()
    assert shown() == titles(0, 1, 3)
    assert part.locator("output").inner_text() == "3 of 6 shown"
    part.get_by_label("Only what differs").uncheck()
    part.get_by_label("Only wrong").check()
    assert shown() == titles(0, 1, 3, 4, 5)
    part.get_by_role("searchbox").fill("B SAYS 4")
    assert shown() == titles(4)
    part.locator(".question:visible summary").click()
    assert part.get_by_text("a says 4").is_visible()
    assert opened.console == []


def test_heatmaps_show_another_rank_and_the_value_below_the_pointer(visit: Callable[..., Visit]) -> None:
    opened = visit(Report("mine", [with_answers("a", {1})]))
    part = opened.page.locator("#gradient")
    cell = part.locator("#gradient-energy .heat path").first
    assert cell.locator("title").text_content() == "q_proj, block 0: 50.0%"
    before = cell.get_attribute("class")
    part.get_by_label("Rank in the heatmaps").press("End")
    assert part.locator(".rank output").inner_text() == "r = 8"
    assert cell.locator("title").text_content() == "q_proj, block 0: 100.0%"
    assert (before, cell.get_attribute("class")) == ("l8", "l15")
    norm = part.locator("#gradient-norm")
    norm.locator(".heat path").nth(1).hover()
    assert norm.locator(".readout").inner_text() == "q_proj, block 1: 2"
    assert opened.console == []


def test_dark_and_light_can_be_chosen_and_are_kept(visit: Callable[..., Visit]) -> None:
    page = visit(Report("mine", [record()]), color_scheme="light").page

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.get_by_label("Dark").check()
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"


def test_without_javascript_everything_can_be_read(visit: Callable[..., Visit]) -> None:
    page = visit(several(), java_script_enabled=False).page
    assert page.locator("#chart-loss svg path").count() == 6
    assert page.locator("#chart-loss svg").first.is_visible()
    assert page.locator(".needs-js:visible").count() == 0
    page.locator("#loss summary").first.click()
    assert page.locator("#loss details[open] td").first.is_visible()


def test_without_javascript_heatmaps_and_answers_can_be_read(visit: Callable[..., Visit]) -> None:
    page = visit(Report("mine", [with_answers("a", {1})]), java_script_enabled=False).page
    assert page.locator("#gradient-energy path.l8").first.is_visible()
    page.locator("#inspection summary").click()
    assert page.locator("#inspection details[open] td").first.is_visible()
    page.locator("#answers summary").first.click()
    assert page.locator("#answers").get_by_text("a says 0").is_visible()
    assert page.locator(".needs-js:visible").count() == 0
