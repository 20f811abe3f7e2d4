"""The model card tells a stranger what an adapter is and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_ga_cli.config.schema import Config
from lora_ga_cli.report.card import Published, card, write_card

MANIFEST: dict[str, Any] = {
    "learning_rate": 1e-3,
    "base": "org/base",
    "base_identity": {"hub": "org/base", "commit": "abc"},
    "label_names": None,
    "adapter_rank": 16,
    "adapted_layers": 14,
    "data": {"train": {"rows": 1234}},
    "steps": 150,
    "training_loss": 1.5,
    "validation_loss": None,
    "provenance": {"loraga": "0.1.0"},
}


def configure(task: str = "causal_lm", method: str = "lora_ga") -> Config:
    form = {"text": "{t}", "label": "l"} if task == "sequence_classification" else {"prompt": "{q}", "answer": "{a}"}
    return Config.model_validate(
        {
            "model": {"path": "org/base", "task": task},
            "dataset": {"train_file": "x.jsonl", **form},
            "method": {"name": method, "type": method},
        }
    )


def front(text: str) -> dict[str, Any]:
    loaded = yaml.safe_load(text.split("---")[1])
    assert isinstance(loaded, dict)
    return loaded


def test_the_front_matter_names_base_library_and_method() -> None:
    text = card("my-run", configure(), MANIFEST)
    assert front(text) == {
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["loraga", "lora-ga", "lora"],
    }


@pytest.mark.parametrize(
    ("task", "auto"),
    [
        ("causal_lm", "AutoModelForCausalLM"),
        ("seq2seq_lm", "AutoModelForSeq2SeqLM"),
        ("sequence_classification", "AutoModelForSequenceClassification"),
    ],
)
def test_it_shows_how_to_load_the_adapter_on_the_base(task: str, auto: str) -> None:
    text = card("my-run", configure(task), MANIFEST)
    assert f"from transformers import {auto}" in text
    assert 'PeftModel.from_pretrained(base, "my-run")' in text


def test_values_are_as_measured_and_missing_ones_are_a_dash() -> None:
    text = card("my-run", configure(), MANIFEST)
    for line in ("| training rows | 1,234 |", "| training loss | 1.5000 |", "| validation loss | – |"):
        assert line in text


@pytest.mark.parametrize(("steps", "of"), [(1, "of the last step"), (15, "mean of the last 15 steps")])
def test_the_training_loss_says_over_how_many_steps_it_is_the_mean(steps: int, of: str) -> None:
    text = card("my-run", configure(), {**MANIFEST, "training_loss_steps": steps})
    assert f"| training loss ({of}) | 1.5000 |" in text


@pytest.mark.parametrize(("rank", "served"), [(16, 16), (12, 16), (200, 256)])
def test_vllm_gets_a_rank_that_it_takes(rank: int, served: int) -> None:
    text = card("my-run", configure(), MANIFEST | {"adapter_rank": rank})
    assert f"--max-lora-rank {served} " in text


def test_a_fully_fine_tuned_model_is_not_called_an_adapter() -> None:
    manifest = MANIFEST | {"adapter_rank": None}
    text = card("my-run", configure(method="full"), manifest)
    assert front(text)["library_name"] == "transformers"
    assert "PeftModel" not in text
    assert "lora-rank" not in text


def test_it_is_written_into_the_run(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", "my-run", configure(), MANIFEST)
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith("---\n")


def test_a_local_base_is_no_hub_metadata() -> None:
    """A path of the machine it was made on would be wrong for everyone else."""
    local = {"base_identity": {"weights_sha256": "00"}, "base": "/home/someone/models/mine"}
    text = card("my-run", configure(), MANIFEST | local)
    assert "base_model" not in front(text)
    assert "/home/someone" not in text
    assert 'from_pretrained("PATH/TO/mine")' in text


def test_a_base_in_the_hubs_own_cache_keeps_its_name() -> None:
    local = {"base_identity": {"weights_sha256": "00"}, "base": "/c/hub/models--org--base-7B/snapshots/0123abcd"}
    text = card("my-run", configure(), MANIFEST | local)
    assert front(text)["base_model"] == "org/base-7B"
    assert 'from_pretrained("org/base-7B")' in text


def test_results_of_evaluations_stand_in_front_and_in_the_text() -> None:
    result = {
        "values": {"accuracy": 0.25, "seconds": 3.0},
        "shares": ["accuracy"],
        "rows": 8,
        "split": "gsm8k",
        "options": {"task": "gsm8k"},
    }
    text = card("mine", configure(), MANIFEST, Published("org/base", results=[result]))
    (entry,) = front(text)["model-index"]
    assert entry["name"] == "mine"
    assert entry["results"][0]["dataset"] == {"name": "gsm8k", "type": "gsm8k"}
    assert {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]} == result["values"]
    assert "| gsm8k | 8 | accuracy | 25.00% |" in text
    assert "config.yaml" not in text


def test_data_sets_are_those_that_the_run_found_on_the_hub() -> None:
    manifest = MANIFEST | {"hub_datasets": ["org/rows", "/data/private/rows"]}
    assert front(card("mine", configure(), manifest))["datasets"] == ["org/rows"]


def test_evaluations_on_several_files_are_told_apart() -> None:
    results = [
        {
            "values": {"loss": 1.0},
            "shares": [],
            "rows": 8,
            "split": "file",
            "options": {"task": "rows", "file": f"/data/private/{name}.jsonl"},
        }
        for name in ("easy", "hard")
    ]
    manifest = MANIFEST | {"hub_datasets": ["org/rows"]}
    text = card("mine", configure(), manifest, Published("org/base", results=results))
    assert "| easy.jsonl | 8 |" in text
    assert "| hard.jsonl | 8 |" in text
    assert "private" not in text
    entries = front(text)["model-index"][0]["results"]
    assert {entry["dataset"]["type"] for entry in entries} == {"custom"}


def test_the_revision_is_that_of_the_base_which_was_trained_on() -> None:
    config = configure()
    config = config.model_copy(update={"model": config.model.model_copy(update={"revision": "v2"})})
    assert 'revision="v2"' in card("mine", config, MANIFEST, Published("org/base"))
    assert "revision=" not in card("mine", config, MANIFEST, Published("other/base"))


@pytest.mark.parametrize(
    ("model", "dataset", "named"),
    [
        ({"new_tokens": ["<think>"]}, {}, "the tokenizer beside"),
        ({}, {"chat_template": "t.jinja"}, "the chat template beside"),
        ({"tokenizer": "org/own"}, {"chat_template": "t.jinja"}, "the tokenizer and the chat template beside"),
    ],
)
def test_only_what_differs_from_the_base_is_said_to_be_beside(
    model: dict[str, Any], dataset: dict[str, Any], named: str
) -> None:
    config = configure()
    changes = {"model": config.model.model_copy(update=model), "dataset": config.dataset.model_copy(update=dataset)}
    text = card("mine", config.model_copy(update=changes), MANIFEST)
    assert f"It was trained with {named} it, not with the base's." in text


def test_a_merged_model_is_a_finetune_that_transformers_loads() -> None:
    text = card("mine", configure(), MANIFEST, Published("org/base", merged=True))
    assert (front(text)["base_model_relation"], front(text)["library_name"]) == ("finetune", "transformers")
    assert "PeftModel" not in text
    assert 'from_pretrained("mine")' in text


def test_classes_are_counted_for_the_reader() -> None:
    manifest = MANIFEST | {"label_names": ["negative", "positive"]}
    text = card("my-run", configure("sequence_classification"), manifest)
    assert "num_labels=2" in text
    assert "| 0 | negative |\n| 1 | positive |" in text
    assert "vllm serve" not in text
    assert "vLLM does not serve this adapter, because a classifier's head" in text


def test_trained_modules_beside_an_adapter_are_why_vllm_does_not_serve_it() -> None:
    config = configure(method="lora")
    config = config.model_copy(update={"method": config.method.model_copy(update={"modules_to_save": ["lm_head"]})})
    text = card("my-run", config, MANIFEST)
    assert "vllm serve" not in text
    assert "not a standard LoRA adapter, but trained modules and a LoRA adapter" in text


ENDS = {"tokens": [5], "names": ["<|im_end|>"], "base": [2]}


class TestWhatEndsAnAnswer:
    def test_is_told_where_the_base_does_not_stop_there(self) -> None:
        text = card("my-run", configure(), {**MANIFEST, "ends": ENDS})
        assert "An answer ends with `<|im_end|>` (number 5), at which the base does not stop by itself" in text
        assert "`model.generation_config.eos_token_id = [2, 5]`" in text
        assert '`"stop_token_ids": [5]`' in text

    def test_is_nothing_to_tell_of_a_complete_model(self) -> None:
        assert "stop_token_ids" not in card("my-run", configure(method="full"), {**MANIFEST, "ends": ENDS})

    def test_is_a_stop_string_where_it_is_no_token(self) -> None:
        text = card("my-run", configure(), {**MANIFEST, "ends": {"text": "[stop]"}})
        assert "An answer ends with the text `[stop]`, which is no token: give it as a stop string." in text


def test_a_tokenizer_of_its_own_is_named() -> None:
    config = configure()
    own = config.model_copy(update={"model": config.model.model_copy(update={"tokenizer": "org/other"})})
    text = card("my-run", own, MANIFEST)
    assert 'tokenizer = AutoTokenizer.from_pretrained("my-run")' in text
    assert "--lora-modules tuned=my-run --tokenizer my-run`" in text
    assert "AutoTokenizer" not in card("my-run", config, MANIFEST)
