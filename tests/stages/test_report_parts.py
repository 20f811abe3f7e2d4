"""What a report shows of a real run beyond its own files: rows, lengths, the gradient, answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from lora_ga_cli.cli.app import main
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.report.html.page import render
from lora_ga_cli.report.html.record import Report, RunRecord
from lora_ga_cli.stages.report import collect
from lora_ga_cli.stages.report_parts import Parts, size_of
from lora_ga_cli.training.run_folder import RunFolder
from tests.conftest import build_model, byte_tokenizer
from tests.helpers import Loraga, configured

ROWS = [{"prompt": f"{number}+1=", "answer": f"#### {number + 1}"} for number in (7, 8, 9, 99, 12345, 100, 5, 6)]
MICRO_BATCH = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with a gradient, and was evaluated."""
    home = tmp_path_factory.mktemp("home")
    build_model("llama").save_pretrained(home / "base")
    byte_tokenizer().save_pretrained(home / "base")
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("LORAGA_CACHE", str(home / "cache"))
        assert main(["eval", *command(home), "name=one", f"eval.file={home / 'rows.jsonl'}"]) == 0
    return home


def command(home: Path) -> list[str]:
    model = ["model=causal_lm", f"model.path={home / 'base'}", "model.dtype=float32", "device=cpu", "method=lora_ga"]
    data = ["dataset=jsonl", f"dataset.train_file={home / 'rows.jsonl'}", "dataset.validation_fraction=0"]
    data += [
        "dataset.max_length=12",
        "dataset.on_long_row=truncate",
        "dataset.shuffle=false",
        "gradient.samples=8",
        "rank=2",
    ]
    short = ["trainer.max_steps=2", "trainer.batch_size=4", f"trainer.micro_batch_size={MICRO_BATCH}"]
    return [*model, *data, *short, "trainer.learning_rate=1e-3", "eval=exact_match", "eval.max_new_tokens=4"]


@pytest.fixture(autouse=True)
def laid_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the run, and of the cache, in the test's own folder."""
    shutil.copytree(home / "runs", "runs")
    shutil.copytree(home / "cache", "cache", dirs_exist_ok=True)


def one() -> RunRecord:
    return collect(RunFolder(Path("runs/one")), "one")


def tokens(home: Path) -> list[tuple[list[int], list[bool]]]:
    """The tokens of every row, and whether each has a loss, by the tokenizer alone."""
    tokenizer = AutoTokenizer.from_pretrained(home / "base")
    found = []
    for row in ROWS:
        prompt, answer = (tokenizer(row[part], add_special_tokens=False)["input_ids"] for part in ("prompt", "answer"))
        answer = [*answer, tokenizer.eos_token_id]
        found.append(((prompt + answer)[:12], ([False] * len(prompt) + [True] * len(answer))[:12]))
    return found


class TestRows:
    def test_the_first_ones_are_shown_with_the_mask_of_their_loss(self) -> None:
        shown = one().rows
        parts = [(part.text, part.learned, part.special) for part in shown[0].segments]
        assert parts == [("7+1=", False, False), ("#### 8", True, False), ("</s>", True, True)]
        assert [row.title for row in shown] == [
            "Row 1, the shortest",
            "Row 2",
            "Row 3, the longest",
            *(f"Row {number}" for number in (4, 5, 6, 7, 8)),
        ]

    def test_lengths_and_shares_are_those_of_the_tokens(self, home: Path) -> None:
        rows, found = tokens(home), one().lengths
        assert found is not None
        assert found["lengths"] == [len(ids) for ids, _ in rows]
        learned, read = sum(sum(mask) for _, mask in rows), sum(len(ids) for ids, _ in rows)
        assert found["labelled_share"] == pytest.approx(learned / read)
        assert [row.labelled for row in one().rows[:2]] == [sum(mask) for _, mask in rows[:2]]
        assert found["truncated"] == 3

    def test_padding_is_what_a_collator_of_transformers_would_add(self, home: Path) -> None:
        """Of the first epoch's two steps, each divided into passes of two rows of similar length."""
        record = one()
        collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(home / "base"), padding=True)
        rows = [{"input_ids": ids, "labels": ids} for ids, _ in tokens(home)]
        steps = _steps_of_epoch(record)
        padding = total = 0
        for step in steps:
            by_length = sorted(step, key=lambda row: len(rows[row]["input_ids"]))
            for begin in range(0, len(step), MICRO_BATCH):
                mask = collator([rows[row] for row in by_length[begin : begin + MICRO_BATCH]])["attention_mask"]
                padding += int((mask == 0).sum())
                total += mask.numel()
        assert record.lengths is not None
        assert record.lengths["padding_share"] == pytest.approx(padding / total)

    def test_rows_that_are_gone_are_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _point_at(monkeypatch, "gone.jsonl")
        record = one()
        assert record.rows == ()
        assert record.absent["rows"].startswith("Its rows cannot be read: ")
        assert "gone.jsonl" in record.absent["rows"]

    def test_other_rows_in_their_place_are_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
        _point_at(monkeypatch, str(Path("other.jsonl").resolve()))
        assert one().absent["rows"] == "The data set has other rows now than the run was trained on."

    def test_runs_with_the_same_rows_load_them_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parts, run = Parts(), RunFolder(Path("runs/one"))
        first = collect(run, "a", parts)
        monkeypatch.delattr("lora_ga_cli.stages.report_parts.prepare_inputs")
        assert collect(run, "b", parts).rows is first.rows

    def test_rows_that_cannot_be_read_are_tried_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _point_at(monkeypatch, "gone.jsonl")
        parts, run = Parts(), RunFolder(Path("runs/one"))
        first = collect(run, "a", parts).absent["rows"]
        monkeypatch.delattr("lora_ga_cli.stages.report_parts.prepare_inputs")
        assert collect(run, "b", parts).absent["rows"] == first


class TestGradient:
    def test_its_energy_is_that_of_the_artifact(self) -> None:
        record = one()
        assert record.gradient is not None
        assert record.gradient["rank"] == 2
        artifact = GradientArtifact.load(Path("cache/gradients", record.gradient["key"]))
        for rank in (1, 2, artifact.max_rank):
            expected = artifact.energy(rank)
            layers = record.gradient["layers"]
            assert {name: one["energy"][str(rank)] for name, one in layers.items()} == pytest.approx(expected)
        name = next(iter(artifact.factors))
        squares = torch.tensor(record.gradient["layers"][name]["singular"]).double().square()
        assert squares[:4].sum() / artifact.factors[name].norm ** 2 == pytest.approx(artifact.energy(2)[name])

    def test_without_the_cache_the_inspection_has_it(self) -> None:
        shutil.rmtree("cache/gradients")
        gradient = one().gradient
        assert gradient is not None
        assert set(gradient["layers"]["model.layers.0.self_attn.q_proj"]["energy"]) >= {"1", "2", "4"}
        render(Report("one", [one()]))

    def test_without_both_a_sentence_says_how_to_get_it(self) -> None:
        shutil.rmtree("cache/gradients")
        Path("runs/one/inspection.json").unlink()
        record = one()
        assert record.gradient is None
        assert "loraga estimate-grad" in record.absent["gradient"]


@pytest.mark.parametrize(
    ("overrides", "saved", "expected"),
    [
        (["lora"], 4, "rank 4"),
        (["lora", "rank_pattern={q_proj: 16, v_proj: 2}"], 16, "ranks from 2 to 16"),
        (["lora_ga"], 8, "rank 4 (saved as an adapter of rank 8: 4 trained + 4 initial)"),
        (["lora_ga", "rank_pattern={q_proj: 16}"], 32,
         "ranks from 4 to 16 (saved as an adapter of rank 32: 16 trained + 16 initial)"),
        (["full"], None, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_the_size_of_a_run_is_that_which_trains_and_that_which_is_saved(
    overrides: list[str], saved: int | None, expected: str, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    run.update_manifest(adapter_rank=saved)
    assert size_of(run, configured(*overrides)) == expected


class TestAnswers:
    def test_they_are_those_beside_the_result(self) -> None:
        (found,) = one().answers
        lines = [
            json.loads(line)["exact_match"] for line in Path("runs/one/predictions.jsonl").read_text().splitlines()
        ]
        assert [(item.prompt, item.text, item.correct) for item in found.answers] == [
            (line["prompt"], line["generated"], line["correct"]) for line in lines
        ]
        assert (found.title, found.file) == ("loss, exact_match", "eval.json")

    def test_a_task_that_is_not_registered_is_a_sentence(self) -> None:
        Path("runs/one/eval").mkdir(exist_ok=True)
        result = {"values": {"x": 1.0}, "options": {"task": "theirs"}, "time": "2030"}
        Path("runs/one/eval/theirs-01.json").write_text(json.dumps(result))
        record = one()
        assert "theirs-01.json" in record.absent["answers"]
        assert "--code FILE" in record.absent["answers"]
        assert len(record.answers) == 1

    def test_damaged_answers_are_named_and_made_again(self, loraga: Loraga) -> None:
        file = Path("runs/one/predictions.jsonl")
        before = file.read_bytes()
        file.write_bytes(before[:-3])
        what = "runs/one/predictions.jsonl does not have the bytes that were written"
        assert what in one().absent["answers"]
        assert f"answers are not shown: {what}" in " ".join(loraga("report", "runs/one", code=1).split())
        assert f"{what}; it is evaluated again" in " ".join(loraga("eval", "runs/one").split())
        assert file.read_bytes() == before
        assert loraga("report", "runs/one")

    @pytest.mark.parametrize("line", ['{"exact_match": 3}', "3", "{"])
    def test_damaged_answers_of_a_result_without_a_digest_are_a_sentence(self, line: str, loraga: Loraga) -> None:
        result = json.loads(Path("runs/one/eval.json").read_text())
        left = {name: value for name, value in result.items() if name not in ("content_sha256", "lines_sha256")}
        Path("runs/one/eval.json").write_text(json.dumps(left))
        Path("runs/one/predictions.jsonl").write_text(f"{line}\n")
        assert "runs/one" in loraga("report", "runs/one", code=1)
        assert one().absent["answers"]


def test_the_page_of_the_run_has_all_parts(loraga: Loraga) -> None:
    loraga("report", "runs/one")
    page = Path("runs/one/report.html").read_text()
    assert all(f'<section id="{part}"' in page for part in ("rows", "gradient", "inspection", "answers"))
    assert '<span class="learned">#### 8</span>' in page


def _steps_of_epoch(record: RunRecord) -> list[list[int]]:
    import numpy as np

    order: list[int] = np.random.default_rng([record.config["seed"], 0]).permutation(len(ROWS)).tolist()
    return [order[:4], order[4:]]


def _point_at(monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Has the run's configuration name another file of rows."""
    stored = RunFolder.read_config

    def changed(run: RunFolder) -> dict[str, Any]:
        config = stored(run)
        return {**config, "dataset": {**config["dataset"], "train_file": file}}

    monkeypatch.setattr(RunFolder, "read_config", changed)
