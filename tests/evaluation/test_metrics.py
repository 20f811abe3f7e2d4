"""The metrics of rows, against closed formulas and one row at a time."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from lora_ga_cli import expressions
from lora_ga_cli.config.schema import DatasetConfig, Task
from lora_ga_cli.data import Split, load_file_split
from lora_ga_cli.errors import DataError, InvalidInput
from lora_ga_cli.evaluation.classes import Classes
from lora_ga_cli.evaluation.metrics import METRICS, Score, ScoringContext
from lora_ga_cli.evaluation.tasks.rows import Metric
from lora_ga_cli.report.progress import counting
from tests.conftest import TASKS, build_model, byte_tokenizer

CHAT = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}a:{% endif %}"
SENTIMENT = ["negative", "positive"]
ENTAILMENT = ["entailment", "neutral", "contradiction"]


def two_classes(tp: int, fp: int, fn: int, tn: int) -> Classes:
    """Rows with this confusion matrix."""
    found = [1] * tp + [1] * fp + [0] * fn + [0] * tn
    return Classes(found, [1] * tp + [0] * fp + [1] * fn + [0] * tn, 2)


def matthews(tp: int, fp: int, fn: int, tn: int) -> float:
    return (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


class TestClasses:
    @pytest.mark.parametrize(
        "matrix", [(6, 1, 2, 3), (1, 0, 0, 1), (0, 4, 3, 0), (90, 4, 1, 5), (5, 5, 5, 5), (1, 9, 0, 2)]
    )
    def test_two_classes(self, matrix: tuple[int, int, int, int]) -> None:
        tp, fp, fn, tn = matrix
        classes = two_classes(*matrix)
        assert classes.accuracy() == (tp + tn) / sum(matrix)
        assert classes.matthews_correlation() == pytest.approx(matthews(*matrix), abs=1e-12)
        assert classes.f1() == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
        assert list(classes.measures()) == ["accuracy", "matthews_correlation", "f1"]

    def test_three_classes(self) -> None:
        """Gorodkin's form, from the confusion matrix: rows are expected, columns found."""
        matrix = [[5, 2, 0], [1, 7, 3], [0, 1, 4]]
        pairs = [(i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) for _ in range(count)]
        classes = Classes([found for _, found in pairs], [expected for expected, _ in pairs], 3)
        total, right = len(pairs), sum(matrix[k][k] for k in range(3))
        of, as_found = [sum(row) for row in matrix], [sum(row[k] for row in matrix) for k in range(3)]
        above = right * total - sum(a * b for a, b in zip(of, as_found, strict=True))
        below = math.sqrt((total**2 - sum(n * n for n in as_found)) * (total**2 - sum(n * n for n in of)))
        assert classes.accuracy() == right / total
        assert classes.matthews_correlation() == pytest.approx(above / below, abs=1e-12)
        assert list(classes.measures()) == ["accuracy", "matthews_correlation"]

    @pytest.mark.parametrize("matrix", [(4, 3, 0, 0), (0, 0, 4, 3), (0, 0, 0, 5), (0, 2, 0, 3), (0, 0, 2, 0)])
    def test_an_undefined_measure_is_zero_without_a_warning(self, matrix: tuple[int, int, int, int]) -> None:
        tp, fp, fn, _ = matrix
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert two_classes(*matrix).matthews_correlation() == 0
            assert two_classes(*matrix).f1() == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1))

    def test_class_1_is_the_positive_one(self) -> None:
        assert two_classes(3, 0, 1, 0).f1() == pytest.approx(6 / 7)
        assert two_classes(0, 0, 0, 4).f1() == 0

    def test_verdicts_name_the_classes(self) -> None:
        verdicts = Classes([1, 0], [1, 1], 2).verdicts(SENTIMENT)
        assert verdicts[1] == {"predicted": "negative", "expected": "positive", "correct": False}
        assert Classes([1, 0], [1, 1], 2).verdicts()[0] == {"predicted": 1, "expected": 1, "correct": True}


class Rows:
    """Rows in a file, read as a task's, and a small random model to score on them."""

    def __init__(self, folder: Path):
        self._file = folder / "rows.jsonl"

    def split(self, task: Task, names: list[str] | None, rows: list[dict[str, Any]], **form: str) -> Split:
        self._file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = form or {"prompt": "say: {text}", "answer": "{label}"}
        labelled = {"label": "label", "label_names": names} if names is not None else {}
        config = DatasetConfig(train_file=str(self._file), max_length=128, **labelled, **given)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = CHAT
        return load_file_split(config, str(self._file), task=task, tokenizer=tokenizer, label_names=names)

    def context(self, family: str, names: list[str] | None, split: Split, **options: Any) -> ScoringContext:
        model = build_model(family).eval()
        tokenizer, task = byte_tokenizer(), TASKS[family]
        return ScoringContext(model, tokenizer, task, split, counting, batch_size=4, label_names=names, **options)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path)


def sentences(classes: int, count: int = 11) -> list[dict[str, Any]]:
    """Texts of all lengths, so that batches are padded."""
    return [{"text": "ab c" * (1 + number * 5 % 9), "label": number * 7 % classes} for number in range(count)]


class TestClassifier:
    @pytest.fixture
    def context(self, rows: Rows) -> ScoringContext:
        names = ["zero", "one", "two"]
        split = rows.split("sequence_classification", names, sentences(3), text="{text}")
        return rows.context("bert", names, split)

    def test_one_pass_serves_all_metrics(self, context: ScoringContext) -> None:
        calls: list[int] = []
        context.model.register_forward_hook(lambda *_: calls.append(1))
        scores = [METRICS[name](context) for name in ("accuracy", "matthews_correlation")]
        assert len(calls) == 3
        assert [list(score.values) for score in scores] == [["accuracy"], ["matthews_correlation"]]
        assert scores[0].verdicts == scores[1].verdicts

    def test_the_classes_are_the_same_as_for_each_row_alone(self, context: ScoringContext) -> None:
        found = METRICS["accuracy"](context)
        for row, verdict in zip(context.split.rows, found.verdicts, strict=True):
            with torch.no_grad():
                logits = context.model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
            assert (verdict["predicted"], verdict["expected"]) == (int(logits.argmax()), row["labels"])
        right = sum(verdict["correct"] for verdict in found.verdicts)
        assert found.values == {"accuracy": right / 11}

    def test_f1_of_three_classes_is_refused_before_the_model_runs(self, context: ScoringContext) -> None:
        context.model.register_forward_hook(lambda *_: pytest.fail("it ran"))
        with pytest.raises(DataError, match=r"eval.metrics: f1 is defined for two classes, and this classifier has 3"):
            METRICS["f1"](context)

    def test_f1_of_two(self, rows: Rows) -> None:
        split = rows.split("sequence_classification", SENTIMENT, sentences(2), text="{text}")
        context = rows.context("bert", SENTIMENT, split)
        torch.manual_seed(0)
        context.model.classifier = torch.nn.Linear(48, 2)
        context.model.config.num_labels = 2
        verdicts = METRICS["accuracy"](context).verdicts
        counts = [sum((v["predicted"], v["expected"]) == pair for v in verdicts) for pair in ((1, 1), (1, 0), (0, 1))]
        value = METRICS["f1"](context).values["f1"]
        assert value == pytest.approx(2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]))


def preferred(context: ScoringContext, row: dict[str, Any], letters: str) -> int:
    """The class whose first letter has the largest logit after the prompt, of one row alone, without any answer."""
    tokens = byte_tokenizer().convert_tokens_to_ids(list(letters))
    if context.task == "seq2seq_lm":
        start = torch.tensor([[context.model.config.decoder_start_token_id]])
        inputs = {"input_ids": torch.tensor([row["input_ids"]]), "decoder_input_ids": start}
    else:
        inputs = {"input_ids": torch.tensor([byte_tokenizer()(row["prompt"])["input_ids"]])}
    with torch.no_grad():
        logits = context.model(**inputs).logits[0, -1]
    return max(range(len(tokens)), key=lambda number: float(logits[tokens[number]]))


class TestLabelTokens:
    @pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
    @pytest.mark.parametrize(("names", "letters"), [(SENTIMENT, "np"), (ENTAILMENT, "enc")])
    def test_it_compares_first_tokens_at_the_start_of_the_answer(
        self, rows: Rows, family: str, names: list[str], letters: str
    ) -> None:
        split = rows.split(TASKS[family], names, sentences(len(names)))
        context = rows.context(family, names, split)
        found = METRICS["label_tokens"](context)
        predicted = [preferred(context, row, letters) for row in split.rows]
        expected = [number * 7 % len(names) for number in range(11)]
        assert [verdict["predicted"] for verdict in found.verdicts] == [names[number] for number in predicted]
        assert [verdict["expected"] for verdict in found.verdicts] == [names[number] for number in expected]
        assert [verdict["prompt"] for verdict in found.verdicts] == list(split.rows["prompt"])
        assert found.values["accuracy"] == sum(a == b for a, b in zip(predicted, expected, strict=True)) / 11
        assert found.values.keys() == {"accuracy", "matthews_correlation"} | ({"f1"} if len(names) == 2 else set())

    def test_no_other_token_can_win_and_a_trained_model_agrees_with_itself(self, rows: Rows) -> None:
        """A model that answers rightly after a few steps: every measure is 1, and so is the exact match."""
        torch.manual_seed(0)
        texts = [{"text": letter * 6, "label": number % 2} for number, letter in enumerate("abababab")]
        context = rows.context(
            "t5",
            SENTIMENT,
            rows.split("seq2seq_lm", SENTIMENT, texts),
            max_new_tokens=16,
            answer_pattern=r"^\s*(.+?)\s*$",
        )
        batch = context.split.form.collate([*context.split.rows])
        optimizer = torch.optim.Adam(context.model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            context.model(**batch).loss.backward()
            optimizer.step()
        assert METRICS["label_tokens"](context).values == {"accuracy": 1.0, "matthews_correlation": 1.0, "f1": 1.0}
        assert METRICS["exact_match"](context).values == {"exact_match": 1.0, "no_answer": 0.0}

    @pytest.mark.parametrize("family", ["t5", "llama"])
    def test_an_answer_may_begin_with_a_space(self, rows: Rows, family: str) -> None:
        """Then the words begin with the same token if a space is a token of its own, as it is here."""
        split = rows.split(TASKS[family], SENTIMENT, sentences(2), prompt="{text}", answer=" {label}")
        with pytest.raises(DataError, match=r"'negative' and 'positive' begin with the same token, 'Ġ'"):
            METRICS["label_tokens"](rows.context(family, SENTIMENT, split))

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (None, "dataset.label_names: label_tokens in eval.metrics needs the words that are answers"),
            (["negative", "neutral"], "'negative' and 'neutral' begin with the same token, 'n'"),
            (["bad", "good"], "dataset.label_names: the answer 'negative' is not one of bad, good"),
            (["negative", ""], "'' has no token"),
        ],
    )
    def test_words_that_begin_with_the_same_token_are_refused(
        self, rows: Rows, names: list[str] | None, message: str
    ) -> None:
        split = rows.split("causal_lm", SENTIMENT, [{"text": "a", "label": 0}])
        with pytest.raises(DataError) as error:
            METRICS["label_tokens"](rows.context("llama", names, split))
        assert message in str(error.value)

    def test_a_prompt_without_token_is_refused(self, rows: Rows) -> None:
        split = rows.split("causal_lm", SENTIMENT, sentences(2), prompt="", answer="{label}")
        with pytest.raises(DataError, match="a prompt without any token"):
            METRICS["label_tokens"](rows.context("llama", SENTIMENT, split))

    def test_an_answer_that_begins_with_another_token_than_its_word_is_refused(self, rows: Rows) -> None:
        """For example if a chat template adds a space, which is not part of the reference."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "negative"}]
        split = rows.split("causal_lm", None, [{"m": messages}], messages="m")
        context = rows.context("llama", SENTIMENT, split)
        with pytest.raises(DataError, match="an answer 'negative' begins with the token 'Ġ', and its word with 'n'"):
            METRICS["label_tokens"](context)


def test_scores_are_those_of_tasks(rows: Rows) -> None:
    split = rows.split("causal_lm", None, [{"q": "1+1=", "a": "#### 2"}], prompt="{q}", answer="{a}")
    context = rows.context("llama", None, split, max_new_tokens=2)
    loss = METRICS["loss"](context)
    assert isinstance(loss, Score)
    assert loss.values["perplexity"] == pytest.approx(math.exp(loss.values["loss"]))
    (verdict,) = METRICS["exact_match"](context).verdicts
    assert (verdict["expected"], verdict["correct"], verdict["prompt"]) == ("2", False, "1+1=")


def test_an_answer_on_which_the_pattern_takes_too_long_is_none(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT", 0.05)
    split = rows.split("causal_lm", None, [{"q": "1", "a": "x!"}, {"q": "2", "a": "y!"}], prompt="{q}", answer="{a}")
    told: list[str] = []
    context = rows.context("llama", None, split, answer_pattern=r"(\w+\.?)+!", warn=told.append)
    monkeypatch.setattr(ScoringContext, "texts", lambda self: ["a" * 60, "y!"])
    found = METRICS["exact_match"](context)
    assert found.values == {"exact_match": 0.5, "no_answer": 0.5}
    assert [verdict["answer"] for verdict in found.verdicts] == [None, "y"]
    (line,) = told
    assert "on 1 of 2 generated texts: each counts as no answer" in line


def test_the_references_are_matched_before_anything_is_generated(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LIMIT", 0.05)
    references = [{"q": "1", "a": "x!"}, {"q": "2", "a": "a" * 60}]
    split = rows.split("causal_lm", None, references, prompt="{q}", answer="{a}")
    context = rows.context("llama", None, split, answer_pattern=r"(\w+\.?)+!")
    monkeypatch.setattr(ScoringContext, "texts", lambda self: pytest.fail("generated before the check"))
    with pytest.raises(InvalidInput, match=r"eval\.answer_pattern.*longer than"):
        METRICS["exact_match"](context)


def test_every_metric_of_the_configuration_has_a_function() -> None:
    assert set(METRICS) == set(get_args(Metric))
