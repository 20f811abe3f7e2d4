"""`loraga eval`: scores that agree with an independent computation, one table over several runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers import Arguments, Loraga, only_run


def test_exact_match_agrees_with_row_by_row_generation(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], sums_file: Path
) -> None:
    """Batched, padded, sorted generation against one row at a time through transformers alone."""
    answers = ["rank=8", "trainer.max_steps=40", "trainer.eval_steps=20", "trainer.save_steps=20", "method=full"]
    loraga("train", *arguments("llama", *answers))
    run = only_run()
    loraga(
        "eval",
        str(run),
        "eval=exact_match",
        "eval.max_new_tokens=8",
        "eval.batch_size=4",
        f"eval.file={sums_file}",
        "eval.limit=12",
    )
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in sums_file.read_text().splitlines()][:12]
    tokenizer = AutoTokenizer.from_pretrained(saved_bases["llama"])
    model = AutoModelForCausalLM.from_pretrained(run, dtype=torch.float32).eval()
    correct = 0
    for row, prediction in zip(rows, predictions, strict=True):
        ids = tokenizer(row["prompt"], return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, do_sample=False, max_new_tokens=8, pad_token_id=2)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        (name, verdict), *more = prediction.items()
        assert (name, more) == ("exact_match", [])
        assert verdict["prompt"] == row["prompt"]
        assert verdict["generated"] == text
        assert verdict["expected"] == row["answer"].removeprefix("#### ")
        correct += verdict["correct"]
    values = json.loads((run / "eval.json").read_text())["values"]
    assert values["exact_match"] == correct / 12


def test_a_row_has_a_line_with_the_verdict_of_every_metric(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("bert"))
    run = only_run()
    loraga("eval", str(run), "eval.metrics=[loss,accuracy,matthews_correlation]")
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    stored = json.loads((run / "eval.json").read_text())
    assert len(lines) == stored["rows"]
    assert {tuple(line) for line in lines} == {("accuracy", "matthews_correlation")}
    assert sum(line["accuracy"]["correct"] for line in lines) / len(lines) == stored["values"]["accuracy"]


def test_loss_and_perplexity_agree_with_transformers(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], sums_file: Path
) -> None:
    loraga("train", *arguments())
    run = only_run()
    loraga("eval", str(run), f"eval.file={sums_file}", "eval.limit=10")
    tokenizer = AutoTokenizer.from_pretrained(saved_bases["llama"])
    base = AutoModelForCausalLM.from_pretrained(saved_bases["llama"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run).eval()
    total, count = 0.0, 0
    for line in sums_file.read_text().splitlines()[:10]:
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            log_probabilities = model(input_ids=ids).logits.log_softmax(-1)[0]
        for position in range(len(prompt), ids.shape[1]):
            total -= float(log_probabilities[position - 1, ids[0, position]])
            count += 1
    values = json.loads((run / "eval.json").read_text())["values"]
    assert values["loss"] == pytest.approx(total / count, rel=1e-4)
    assert values["perplexity"] == pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-3)


@pytest.mark.figures
def test_several_runs_in_one_table_and_one_picture(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", "-m", *arguments("llama", "method=lora,lora_ga"))
    folders = [str(item) for item in Path("runs").glob("*")]
    out = loraga("eval", *folders)
    table = out[out.index("method") :]
    assert "lora " in table
    assert "lora_ga" in table
    assert "perplexity" in table
    assert Path("runs/comparison.png").stat().st_size > 10_000
    again = loraga("eval", *[str(item) for item in Path("runs").glob("*")])
    assert again.count("reused") == 2
    assert "left out" not in again  # the picture and the locks of the runs


def test_eval_of_a_recipe_trains_first(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("eval", *arguments())
    assert out.index("gradient  estimated") < out.index("train  finished") < out.index("perplexity")


def test_what_belongs_to_the_run_cannot_be_changed_while_scoring(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments())
    assert "rank belongs to the run" in loraga("eval", str(only_run()), "rank=8", code=2)
    assert "did you mean eval.limit?" in loraga("eval", str(only_run()), "eval.limt=8", code=2)


def test_without_rows_to_score_on_there_is_an_error(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "dataset.validation_fraction=0"))
    assert "there are no rows to evaluate on" in loraga("eval", str(only_run()), code=2)


def test_an_unfinished_run_is_left_out(loraga: Loraga, arguments: Arguments) -> None:
    loraga("init", *arguments())
    assert "has not finished" in loraga("eval", str(only_run()), code=2)
    assert "no such run folder" in loraga("eval", "runs/nothing", code=2)


def test_an_answer_pattern_that_matches_no_reference_is_an_error(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments())
    out = loraga("eval", str(only_run()), "eval=exact_match", "eval.answer_pattern='= (.+)'", code=2)
    assert "is in no reference, such as '#### " in out
    assert "(\"eval.answer_pattern='(.+)'\" takes the last line)" in " ".join(out.split())  # as a shell takes it
