"""What the sections on rows, the gradient, the adapter and answers show."""

from __future__ import annotations

import math

import pytest

from lora_ga_cli.data.show import Segment
from lora_ga_cli.report.html.page import render
from lora_ga_cli.report.html.record import Answered, Report, ShownRow, absences
from lora_ga_cli.report.html.sections import answers as answers_section
from lora_ga_cli.report.html.sections.answers import Answers
from lora_ga_cli.report.html.sections.gradient import Gradient
from lora_ga_cli.report.html.sections.inspection import Inspection
from lora_ga_cli.report.html.sections.rows import MOST_LETTERS, Rows
from tests.report.html.conftest import LAYERS, LENGTHS, answer, gradient, inspection, record
from tests.report.html.test_sections import shown

ROW = ShownRow([Segment("<s>", False, True), Segment("Q: 1\n  A: ", False), Segment("2</s>", True)], 7, 2, "Row 1")


def test_parts_of_which_nothing_is_known_are_not_there() -> None:
    for section in (Rows(), Gradient(), Inspection(), Answers()):
        assert section.content([record()]) is None


@pytest.mark.parametrize("section", [Rows(), Gradient(), Inspection(), Answers()], ids=lambda section: section.name)
def test_a_part_that_could_not_be_had_says_why(section: Rows) -> None:
    page = render(Report("mine", [record(absent={section.name: "It is gone."})]))
    assert f'<section id="{section.name}"' in page
    assert "It is gone." in page


def test_runs_with_the_same_reason_share_a_line() -> None:
    runs = [record("a", absent={"rows": "Gone."}), record("b"), record("c", absent={"rows": "Gone."})]
    assert absences(runs, "rows") == [(["a", "c"], "Gone.")]


class TestRows:
    def test_what_is_learned_is_marked_and_white_space_is_kept(self) -> None:
        page = render(Report("mine", [record(rows=[ROW], lengths=LENGTHS)]))
        row = '<span class=" special">&lt;s&gt;</span>Q: 1\n  A: <span class="learned">2&lt;/s&gt;</span></pre>'
        assert row in page

    def test_facts_about_all_rows(self) -> None:
        (group,) = shown(Rows().content([record(rows=[ROW], lengths={**LENGTHS, "skipped": {"empty": 3}})])).values[
            "groups"
        ]
        assert group.facts == [
            ("rows", "4"),
            ("tokens", "70"),
            ("tokens of a row", "12 to 30, median 14"),
            ("tokens that are learned", "40.0%"),
            ("padding, if rows are padded", "10.0% of the tokens"),
            ("rows that were truncated", "2"),
            ("rows left out: empty", "3"),
        ]

    def test_a_long_row_is_folded_and_a_very_long_one_is_cut_with_a_line(self) -> None:
        long = ShownRow([Segment("begins " + "x" * 3 * MOST_LETTERS, False), Segment("end", True)], 9_000, 1, "Row 2")
        (group,) = shown(Rows().content([record(rows=[ROW, long])])).values["groups"]
        short_one, folded = group.rows
        assert short_one.beginning == ""
        assert folded.beginning.startswith("begins xxx")
        assert sum(len(part.text) for part in folded.segments) == MOST_LETTERS
        assert folded.left_out == len("begins ") + 3 * MOST_LETTERS + len("end") - MOST_LETTERS
        assert f"{folded.left_out:,} more letters are left out here." in render(Report("x", [record(rows=[long])]))

    def test_runs_with_the_same_rows_share_them(self) -> None:
        other = ShownRow([Segment("other", True)], 3, 3, "Row 1")
        runs = [record("a", rows=[ROW]), record("b", rows=[ROW]), record("c", rows=[other])]
        groups = shown(Rows().content(runs)).values["groups"]
        assert [group.names for group in groups] == [["a", "b"], ["c"]]


class TestGradient:
    def test_energy_of_all_layers_is_weighted_by_their_squared_norms(self) -> None:
        content = shown(Gradient().content([record(gradient=gradient())]))
        together, lowest = content.values["overall"].rows
        # all six layers have the norm 2, and the last one half of the others' share
        assert together == ["all layers together", "11.5%", "22.9%", "45.8%", "91.7%"]
        assert lowest == ["lowest layer", "6.2%", "12.5%", "25.0%", "50.0%"]

    def test_heatmaps_begin_at_the_rank_of_the_run(self) -> None:
        content = shown(Gradient().content([record(gradient=gradient(rank=4))]))
        energy = content.values["figures"][0]
        assert [cell.note for cell in energy.columns[0].maps[0].cells][:2] == [
            "q_proj, block 0: 50.0%",
            "q_proj, block 1: 50.0%",
        ]
        assert content.data["ranks"] == [1, 2, 4, 8]
        assert content.data["maps"]["gradient-energy-0-0"][3] == [1000, 1000, 1000, 1000, 1000, 500]

    def test_a_rank_without_values_takes_the_nearest(self) -> None:
        assert shown(Gradient().content([record(gradient=gradient(rank=7))])).values["start"] == 8

    def test_an_exact_gradient_has_no_alignment_to_show(self) -> None:
        found = gradient()
        for layer in found["layers"].values():
            layer["alignment"] = dict.fromkeys(layer["alignment"], 1.0)
        content = shown(Gradient().content([record(gradient=found)]))
        assert [figure.title for figure in content.values["figures"]] == ["Captured energy", "‖G‖"]

    def test_runs_with_one_gradient_share_it(self) -> None:
        runs = [
            record("a", gradient=gradient()),
            record("b", gradient=gradient()),
            record("c", gradient=gradient(key="2c")),
        ]
        content = shown(Gradient().content(runs))
        assert [column.name for column in content.values["figures"][0].columns] == ["a, b", "c"]

    def test_every_layer_has_a_line_in_the_table(self) -> None:
        (table,) = shown(Gradient().content([record(gradient=gradient())])).values["tables"]
        assert table.rows[0] == [LAYERS[0], "48×32", "2", "12.5%", "25.0%", "50.0%", "100.0%", "100.0%"]
        assert len(table.rows) == len(LAYERS)


class TestInspection:
    def test_only_measures_that_were_computed_are_shown(self) -> None:
        titles = [
            [figure.title for figure in shown(Inspection().content([record(inspection=found)])).values["figures"]]
            for found in (
                inspection(),
                inspection(amplification=3.0, intruders={"count": 1, "of": 8, "threshold": 0.6}),
            )
        ]
        assert titles[0] == ["‖ΔW‖", "Effective rank", "Stable rank", "Stayed where it began"]
        assert titles[1] == [*titles[0], "Amplification", "Intruder dimensions"]

    def test_one_run_has_lines_by_kind_and_several_have_one_each(self) -> None:
        """Norms of several layers are those of all their changes as one matrix, as `loraga inspect` prints them."""
        one = shown(Inspection().content([record(inspection=inspection())])).values["summary"]
        norms = {"q_proj": (1, 3, 5), "v_proj": (2, 4, 6), "all layers": (1, 2, 3, 4, 5, 6)}
        assert [row[:3] for row in one.rows] == [
            [kind, str(len(of_kind)), f"{math.hypot(*of_kind):.3g}"] for kind, of_kind in norms.items()
        ]
        runs = [record("a", inspection=inspection()), record("b", inspection=inspection(norm=2.0))]
        two = shown(Inspection().content(runs)).values["summary"]
        length = math.hypot(1, 2, 3, 4, 5, 6)
        assert [row[:3] for row in two.rows] == [["a", "6", f"{length:.3g}"], ["b", "6", f"{2 * length:.3g}"]]

    def test_the_share_in_the_initial_spaces_is_that_in_either_of_them(self) -> None:
        figures = shown(Inspection().content([record(inspection=inspection())])).values["figures"]
        assert figures[-1].columns[0].maps[0].cells[0].note == "q_proj, block 0: 62.5%"

    def test_a_cut_can_be_to_every_lower_rank(self) -> None:
        content = shown(Inspection().content([record(inspection=inspection())]))
        assert content.data["ranks"] == [1, 2]
        assert content.values["cut"].columns[0].maps[0].cells[0].note == "q_proj, block 0: 25.0%"
        assert content.data["maps"]["inspection-cut-0-0"] == [[500] * 6, [250] * 6]

    def test_an_adapter_of_rank_1_has_no_cut(self) -> None:
        found = inspection(rank=1, cut={"1": 0.0})
        content = shown(Inspection().content([record(inspection=found)]))
        assert content.values["cut"] is None
        assert content.data is None
        render(Report("x", [record(inspection=found)]))


class TestAnswers:
    def test_runs_answers_to_one_question_are_beside_each_other(self) -> None:
        a = Answered("sums", "sums", [answer(0), answer(1, correct=False), answer(2)], "sums-1.json")
        b = Answered("sums", "sums", [answer(1), answer(2)], "sums-2.json")
        (task,) = shown(Answers().content([record("a", answers=[a]), record("b", answers=[b])])).values["tasks"]
        assert [[one.kind for one in question.answers] for question in task.questions] == [
            ["right", "other"],
            ["wrong", "right"],
            ["right", "right"],
        ]
        assert [question.differs for question in task.questions] == [True, True, False]
        assert [question.wrong for question in task.questions] == [False, True, False]
        assert task.counts == [("a", "2 of 3 right", "66.7%"), ("b", "2 of 2 right", "100.0%")]

    def test_where_nothing_is_right_or_wrong_other_texts_differ(self) -> None:
        def of(name: str) -> Answered:
            texts = ["same", f"by {name}"]
            return Answered("t", "t", [answer(i, correct=None, text=text) for i, text in enumerate(texts)], "t.json")

        (task,) = shown(Answers().content([record(name, answers=[of(name)]) for name in "ab"])).values["tasks"]
        assert [question.differs for question in task.questions] == [False, True]
        assert not task.judged

    def test_what_has_no_room_is_counted_and_what_differs_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(answers_section, "MOST_BYTES", 4_000)
        many = [answer(number, correct=number != 90) for number in range(100)]
        runs = [record("a", answers=[Answered("t", "t", many, "t-1.json")])]
        runs.append(record("b", answers=[Answered("t", "t", [answer(number) for number in range(100)], "t-2.json")]))
        (task,) = shown(Answers().content(runs)).values["tasks"]
        titles = [question.title for question in task.questions]
        assert titles == [*(f"question {number}" for number in range(len(titles) - 1)), "question 90"]
        assert task.notes[0].startswith(f"{len(titles)} of 100 questions are here, those that differ first")
        assert task.counts[0][1] == "99 of 100 right"

    def test_a_page_of_very_many_answers_stays_below_the_limit(self) -> None:
        many = [answer(number, prompt="ä" * 2_000, text="ö" * 9_000) for number in range(3_000)]
        page = render(Report("x", [record(answers=[Answered("t", "t", many, "t.json")])]))
        assert len(page.encode()) < 1_500_000

    def test_programs_keep_their_white_space_in_a_fixed_width(self) -> None:
        code = answer(0, text="def f():\n    return 1\n", is_code=True)
        page = render(Report("x", [record(answers=[Answered("t", "t", [code], "t.json")])]))
        assert '<pre class="code" dir="auto">def f():\n    return 1\n</pre>' in page

    def test_more_runs_than_have_room_are_named(self) -> None:
        runs = [record(name, answers=[Answered("t", "t", [answer(0)], "t.json")]) for name in "abcdef"]
        content = shown(Answers().content(runs))
        assert content.values["names"] == list("abcd")
        assert content.values["more"] == ["e", "f"]
