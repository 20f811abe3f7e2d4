"""Batches by length, and what happens when memory runs out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lora_ga_cli.config.schema import DatasetConfig
from lora_ga_cli.data import Split, load_file_split
from lora_ga_cli.evaluation.batches import Batches, by_length
from lora_ga_cli.evaluation.generate import Generator
from lora_ga_cli.evaluation.metrics import METRICS, Score, ScoringContext
from lora_ga_cli.evaluation.tasks.benchmark import GenerationOptions
from lora_ga_cli.report.progress import counting
from tests.conftest import TASKS, byte_tokenizer
from tests.evaluation.models import restless
from tests.evaluation.test_generate import PROMPTS, Bench

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"
WORDS = ["negative", "positive"]


def fails_above(model: Any, rows: int, sizes: list[int]) -> Any:
    """Makes a model run out of memory with more rows than these, and notes the rows of each batch that it finished."""

    def watched(_: object, args: object, inputs: dict[str, Any]) -> None:
        count = len(inputs["input_ids" if "input_ids" in inputs else "decoder_input_ids"])
        if count > rows:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        sizes.append(count)

    return model.register_forward_pre_hook(watched, with_kwargs=True)


def test_batches_are_halved_where_memory_runs_out_and_stay_so() -> None:
    tried: list[int] = []
    halved: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return [item * item for item in items]

    batches = Batches(10, work, halved.append)
    parts = list(batches.run(range(11)))
    assert [item for part in parts for item in part] == [item * item for item in range(11)]
    assert (tried, halved) == ([10, 5, 3, 3, 3, 2], [5, 3])
    assert list(batches.run(range(4))) == [[0, 1, 4], [9]]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(OUT_OF_MEMORY), RuntimeError("shapes do not fit")])
def test_an_error_that_smaller_batches_do_not_help_is_raised(error: RuntimeError) -> None:
    """Memory that does not suffice for one row, and any other error at once."""
    tried: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        raise error

    with pytest.raises(RuntimeError) as caught:
        list(Batches(4, work, lambda size: None).run(range(4)))
    assert caught.value is error
    assert tried == ([4, 2, 1] if isinstance(error, torch.OutOfMemoryError) else [4])


def test_the_longest_rows_come_first_and_equal_ones_stay_in_order() -> None:
    assert by_length([3, 9, 3, 1, 9]) == [1, 4, 0, 2, 3]


class TestRows:
    @pytest.fixture(params=["llama", "t5", "bert"])
    def family(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def split(self, family: str, tmp_path: Path) -> Split:
        rows = [{"text": "ab c" * (1 + number * 5 % 9), "label": number * 5 % 2} for number in range(11)]
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        form = {"text": "{text}"} if family == "bert" else {"prompt": "say: {text}", "answer": "{label}"}
        config = DatasetConfig(train_file=str(file), max_length=128, label="label", label_names=WORDS, **form)
        task: Any = TASKS[family]
        return load_file_split(config, str(file), task=task, tokenizer=byte_tokenizer(), label_names=WORDS)

    def test_the_results_of_rows_are_the_same_in_any_batches(self, family: str, split: Split) -> None:
        """Against one row at a time, in the rows' order; with and without an end of the memory."""

        def score(size: int, rows: int | None = None) -> tuple[list[Score], list[int], list[str]]:
            model, sizes, warnings = restless(family).double(), [], []
            context = ScoringContext(
                model, byte_tokenizer(), TASKS[family], split, counting, size, 4, "(.*)", WORDS, warnings.append
            )
            names = ["loss", "accuracy"] if family == "bert" else ["loss", "exact_match", "label_tokens"]
            with fails_above(model, size if rows is None else rows, sizes):
                return [METRICS[name](context) for name in names], sizes, warnings

        alone, _, _ = score(1)
        for size, rows, most in ((4, None, 4), (8, 3, 2)):
            found, sizes, warnings = score(size, rows)
            assert max(sizes) == most
            assert len(warnings) == (0 if rows is None else 2 * len(found))
            for one, other in zip(found, alone, strict=True):
                assert one.values == pytest.approx(other.values, rel=1e-6)  # a loss is computed in float32
                assert list(one.verdicts) == list(other.verdicts)
        assert "goes on with batches of 2 (eval.batch_size=2 would" in warnings[1]

    def test_neighbors_in_a_batch_are_of_similar_length(self, family: str, split: Split) -> None:
        seen: list[list[int]] = []
        context = ScoringContext(restless(family), byte_tokenizer(), TASKS[family], split, counting, batch_size=4)
        context.of_rows("row", lambda rows: seen.append([row["length"] for row in rows]) or rows)
        assert [len(batch) for batch in seen] == [4, 4, 3]
        assert [length for batch in seen for length in batch] == sorted(split.rows["length"], reverse=True)


class TestAnswers:
    def test_greedy_answers_are_the_same_after_memory_has_run_out(self, tmp_path: Path) -> None:
        answers, warnings, sizes = [], [], []
        for rows in (8, 2):
            model = restless("llama").double()
            options = GenerationOptions(task="bench", max_new_tokens=6, batch_size=6)
            generator = Generator(model, byte_tokenizer(), "causal_lm", options, 0, warnings.append)
            with fails_above(model, rows, sizes):
                answers.append(generator.completions(Bench(PROMPTS), tmp_path / f"{rows}.jsonl", counting))
        assert answers[0] == answers[1]
        assert sizes[-1] <= 2
        assert [text.split(" (")[0].rsplit(" ", 1)[1] for text in warnings] == ["3", "2"]
        assert (tmp_path / "8.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()

    def test_prompts_are_sorted_by_tokens_and_not_by_characters(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A prompt with long words has many characters and few tokens."""
        vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "b": 4, "incomprehensibilities": 5}
        plain = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
        plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="<pad>")
        seen: list[list[str]] = []

        def generate(_: Generator, prompts: list[str], stops: object) -> list[tuple[str, bool]]:
            seen.append(prompts)
            return [("", True)] * len(prompts)

        monkeypatch.setattr(Generator, "_generate", generate)
        prompts = ["incomprehensibilities", "a b", "incomprehensibilities b", "a b a b", "a"]
        options = GenerationOptions(task="bench", batch_size=2)
        generator = Generator(restless("llama"), words, "causal_lm", options, 0)
        completions = generator.completions(Bench(prompts), tmp_path / "file.jsonl", counting)
        assert seen == [["a b a b", "a b"], ["incomprehensibilities b", "incomprehensibilities"], ["a"]]
        assert [completion.prompts for completion in completions] == [(prompt,) for prompt in prompts]
