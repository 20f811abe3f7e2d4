"""`loraga train`: what a run leaves, how it goes on, and when it stops."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from lora_ga_cli.model.targets import find_targets
from tests.conftest import FAMILIES, build_batch, build_model, byte_tokenizer
from tests.helpers import Arguments, Loraga, copied_between_two_checkpoints, only_run, points


@pytest.mark.parametrize("method", ["lora_ga", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_evaluates_and_merges(
    loraga: Loraga, arguments: Arguments, family: str, method: str
) -> None:
    """The stages check on the way that the saved and the merged model compute what was trained."""
    more = ["trainer.max_steps=20"] if family == "bert" else []  # its loss has more noise
    loraga("train", *arguments(family, f"method={method}", *more))
    run = only_run()
    losses = [point["loss"] for point in points(run) if "loss" in point]
    assert (min(losses) if family == "bert" else losses[-1]) < losses[0]
    metric = "accuracy" if family == "bert" else "exact_match"
    out = loraga("eval", str(run), f"eval={metric}", "eval.max_new_tokens=4")
    assert metric.replace("_", " ") in out
    values = json.loads((run / "eval.json").read_text())["values"]
    assert values["loss"] == pytest.approx(json.loads((run / "manifest.json").read_text())["validation_loss"], rel=1e-4)
    assert "logits equal the adapter's" in loraga("merge", str(run))


@pytest.mark.parametrize("method", ["lora_ga", "lora"])
def test_a_run_with_products_in_bfloat16(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It resumes to the bit, and saves what PEFT computes: the base is in float32, where the check after training
    allows no rounding to bfloat16."""
    options = [f"method={method}", *(["method.offset=adapter"] if method == "lora_ga" else [])]
    rounded = [*options, "trainer.adapter_dtype=bfloat16"]
    with monkeypatch.context() as patch:
        copied_between_two_checkpoints(patch, "uninterrupted", "runs")
        said = loraga("train", *arguments("llama", *rounded, "output_dir=uninterrupted"))
    assert "products of the adapter in bfloat16" in said
    assert "resuming after step 2" in loraga("train", *arguments("llama", *rounded))
    loraga("train", *arguments("llama", *options, "output_dir=exact"))
    run, uninterrupted, exact = (only_run(folder) for folder in ("runs", "uninterrupted", "exact"))
    assert json.loads((run / "manifest.json").read_text())["saved_difference"] < 1e-5
    tensors, whole, other = (load_file(folder / "adapter_model.safetensors") for folder in (run, uninterrupted, exact))
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in tensors.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in tensors.items())


def test_a_type_that_an_adapter_cannot_compute_in_is_an_error(loraga: Loraga, arguments: Arguments) -> None:
    options = ["method=dora", "trainer.adapter_dtype=bfloat16"]
    assert "trainer.adapter_dtype=bfloat16 does not work here" in loraga("train", *arguments("llama", *options), code=2)


@pytest.mark.figures
def test_a_run_folder_documents_itself(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments())
    run = only_run()
    assert "rank 4, 14 layers" in out
    assert "a standard LoRA adapter of rank 8 (4 trained + 4 initial)" in out
    assert "--max-lora-rank 8" in out
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["adapter_rank"] == 8
    assert manifest["seed"] == 42
    assert manifest["provenance"]["packages"]["torch"] == torch.__version__
    assert manifest["data"]["train"]["rows"] == 114
    assert len(manifest["base_fingerprint"]) == 64
    assert manifest["init_difference"] < 1e-5
    assert manifest["saved_difference"] < 1e-5
    trained = manifest["trained_parameters"]
    assert trained == sum(4 * sum(target.shape) for target in find_targets(build_model("llama")).values())
    moments, counters = 2 * 4 * trained, 2 * 14 * 4  # in float32; one counter for each factor
    assert manifest["optimizer_state_bytes"] == moments + counters
    assert 0 < manifest["seconds_per_step"] < manifest["training_seconds"]
    assert manifest["peak_memory_bytes"] is None
    assert yaml.safe_load((run / "config.yaml").read_text())["rank"] == 4
    with Image.open(run / "loss.png") as image:
        assert image.width > 500
    card = (run / "README.md").read_text()
    assert "PeftModel.from_pretrained(base" in card
    assert "--max-lora-rank 8" in card
    steps = [point["step"] for point in points(run) if "loss" in point]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not [file for file in run.rglob("*") if file.suffix in (".bin", ".pkl")]


def test_the_same_command_again_finds_the_run_finished(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments())
    before = (only_run() / "manifest.json").read_text()
    assert "finished already" in loraga("train", *arguments())
    assert (only_run() / "manifest.json").read_text() == before


def test_a_sweep_over_ranks_estimates_once(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", "-m", *arguments("llama", "rank=2,4,8"))
    assert out.count("gradient  estimated") == 1
    assert out.count("gradient  reused") == 2
    assert [f"━━ {number}: rank={rank} ━━" in out for number, rank in enumerate((2, 4, 8), start=1)] == [True] * 3
    ranks = {json.loads((run / "adapter_config.json").read_text())["r"] for run in Path("runs").glob("[!.]*")}
    assert ranks == {4, 8, 16}


def test_a_larger_rank_than_the_artifact_serves_is_estimated_again(loraga: Loraga, arguments: Arguments) -> None:
    loraga("estimate-grad", *arguments("llama", "gradient.capacity=8"))
    assert "reused" in loraga("estimate-grad", *arguments("llama"))
    out = loraga("estimate-grad", *arguments("llama", "rank=8"))
    assert "keeps 8 singular vectors, and 16 are needed" in out
    assert "serves ranks up to 16" in out


@pytest.mark.parametrize(
    "change",
    ["dataset.answer='x{answer}'", "gradient.samples=15", "seed=1", "target_modules=[q_proj]", "model.dtype=bfloat16"],
)
def test_another_gradient_is_never_taken_for_this_one(loraga: Loraga, arguments: Arguments, change: str) -> None:
    loraga("estimate-grad", *arguments())
    assert "gradient  estimated" in loraga("estimate-grad", *arguments("llama", change))


@pytest.mark.parametrize(
    "same", ["rank=8", "method.direction=random", "trainer.learning_rate=1", "gradient.micro_batch_size=2"]
)
def test_the_same_gradient_is_found_again(loraga: Loraga, arguments: Arguments, same: str) -> None:
    loraga("estimate-grad", *arguments())
    assert "gradient  reused" in loraga("estimate-grad", *arguments("llama", same))


def test_init_stores_the_initialization_that_train_goes_on_from(loraga: Loraga, arguments: Arguments) -> None:
    loraga("init", *arguments())
    init = load_file(only_run() / "init.safetensors")
    out = loraga("train", *arguments())
    assert "restored" in out
    assert "gradient  " not in out
    saved = load_file(only_run() / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(saved[f"base_model.model.{name}.lora_B.weight"][:, 4:], init[f"{name}.B0"])


def test_two_trainings_of_one_seed_are_the_same_to_the_bit(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "output_dir=a"))
    loraga("train", *arguments("llama", "output_dir=b", "cache_dir=elsewhere"))
    one, other = (load_file(only_run(folder) / "adapter_model.safetensors") for folder in ("a", "b"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_of_other_settings_is_not_touched(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments("llama", "name=mine"))
    out = loraga("train", *arguments("llama", "name=mine", "trainer.learning_rate=5e-3"), code=2)
    assert "trainer.learning_rate was 0.01, is 0.005" in out
    loraga("train", *arguments("llama", "name=mine", "trainer.learning_rate=5e-3", "overwrite=true"))
    assert {item.name for item in Path("runs").iterdir() if item.is_dir()} == {"mine", "mine.old"}


def test_a_loss_that_is_not_finite_stops_before_the_step(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga(
        "train", *arguments("llama", "method=full", "trainer.learning_rate=1e9", "trainer.max_grad_norm=0"), code=1
    )
    assert "so training stopped" in out
    assert "Traceback" not in out
    losses = [point["loss"] for point in points(only_run()) if "loss" in point]
    assert all(torch.isfinite(torch.tensor(losses)))
    for checkpoint in (only_run() / "checkpoints").glob("checkpoint-*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adalora_trains_with_its_penalty_and_reports_without(
    loraga: Loraga, arguments: Arguments, precision: str
) -> None:
    """At its first step it computes what LoRA does, so the two report one loss, whatever the penalty's weight."""
    losses, tensors = {}, {}
    short = ["trainer.max_steps=3", f"trainer.precision={precision}"]
    for folder, method in {
        "lora": ["method=lora"],
        "light": ["method=adalora", "method.orthogonality=0.5"],
        "heavy": ["method=adalora", "method.orthogonality=50"],
    }.items():
        loraga("train", *arguments("llama", f"output_dir={folder}", *short, *method))
        losses[folder] = next(point["loss"] for point in points(only_run(folder)) if "loss" in point)
        tensors[folder] = load_file(only_run(folder) / "adapter_model.safetensors")
    assert losses["light"] == pytest.approx(losses["lora"], rel=1e-5)
    assert losses["heavy"] == pytest.approx(losses["lora"], rel=1e-4)  # 250 was added and subtracted again
    name = next(name for name in tensors["light"] if "lora_A" in name)
    assert not torch.equal(tensors["light"][name], tensors["heavy"][name])


@pytest.fixture
def worsening(arguments: Arguments, tmp_path: Path) -> Callable[..., list[str]]:
    """A run whose validation loss only rises: it learns to answer in digits, and is asked for letters."""
    (tmp_path / "letters.jsonl").write_text('{"prompt": "1+1=", "answer": "qqqqqq"}\n' * 4)

    def build(*overrides: str) -> list[str]:
        validation = ["dataset.validation_file=letters.jsonl", "dataset.validation_fraction=0"]
        return arguments("llama", *validation, *overrides)

    return build


def test_the_best_checkpoint_is_kept(loraga: Loraga, worsening: Arguments) -> None:
    loraga("train", *worsening("trainer.load_best=true"))
    run = only_run()
    losses = [point["eval_loss"] for point in points(run) if "eval_loss" in point]
    assert losses[0] < losses[-1]
    loraga("eval", str(run))
    assert json.loads((run / "eval.json").read_text())["values"]["loss"] == pytest.approx(losses[0], rel=1e-4)
    assert json.loads((run / "manifest.json").read_text())["validation_loss"] == pytest.approx(losses[0])


def test_early_stopping_stops(loraga: Loraga, worsening: Arguments) -> None:
    loraga("train", *worsening("trainer.early_stopping_patience=2", "trainer.max_steps=40"))
    assert json.loads((only_run() / "manifest.json").read_text())["steps"] == 6  # the best at 2, then two worse


@pytest.mark.parametrize(
    "extra",
    [
        ("model.dtype=bfloat16", "trainer.weight_decay=0.1"),
        ("trainer.precision=bf16",),
        ("trainer.gradient_checkpointing=true",),
        ("trainer.gradient_checkpointing=true", "trainer.gradient_checkpointing_every=2"),
        ("trainer.optimizer=adamw_8bit",),
    ],
)
def test_precisions_and_checkpointing(loraga: Loraga, arguments: Arguments, extra: tuple[str, ...]) -> None:
    loraga("train", *arguments("llama", *extra))
    losses = [point["loss"] for point in points(only_run()) if "loss" in point]
    assert losses[-1] < losses[0]
    saved = load_file(only_run() / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulation_changes_memory_and_not_the_result(loraga: Loraga, arguments: Arguments, family: str) -> None:
    """Some models of transformers ignore the number of items that their loss should be divided by."""
    base = build_model(family)
    for name in [
        name for name in vars(base.config) if "drop" in name and isinstance(getattr(base.config, name), float)
    ]:
        setattr(base.config, name, 0.0)  # which would be drawn otherwise for other batches
    (base.bert if family == "bert" else base).save_pretrained("base")
    byte_tokenizer().save_pretrained("base")
    for folder, size in (("a", 8), ("b", 2)):
        options = [f"output_dir={folder}", f"trainer.micro_batch_size={size}", "trainer.max_grad_norm=0"]
        options += ["method=lora", "trainer.learning_rate=1e-3", "model.path=./base"]
        loraga("train", *arguments(family, *options))
    one, other = (points(only_run(folder)) for folder in ("a", "b"))
    for first, second in zip(one, other, strict=True):
        key = "loss" if "loss" in first else "eval_loss"
        assert first[key] == pytest.approx(second[key], rel=1e-4)


def test_a_run_does_not_go_on_with_other_rows(loraga: Loraga, arguments: Arguments, sums_file: Path) -> None:
    loraga("train", *arguments("llama", "name=mine"))
    sums_file.write_text(sums_file.read_text().replace("#### 1", "#### 2"))
    assert "began with other train" in loraga("train", *arguments("llama", "name=mine"), code=2)


def test_a_pooler_that_is_new_is_saved_with_the_adapter(loraga: Loraga, arguments: Arguments, tmp_path: Path) -> None:
    """Sentence encoders come without one; PEFT alone, drawing its own, must still compute what was trained."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, BertModel

    BertModel(build_model("bert").config, add_pooling_layer=False).save_pretrained("base")
    byte_tokenizer().save_pretrained("base")
    loraga("train", *arguments("bert", "model.path=./base"))
    logits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)
        with torch.no_grad():
            logits.append(PeftModel.from_pretrained(base, only_run()).eval()(**build_batch("bert")).logits)
    torch.testing.assert_close(*logits)


def test_dropout_on_the_adapter_reaches_the_initial_factors_too(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments("llama", "adapter_dropout=0.2", "trainer.learning_rate=1e-6"))
    assert "offset subtracted in the adapter" in out
    losses = [point["loss"] for point in points(only_run()) if "loss" in point]
    assert max(losses) - min(losses) < 0.1
    out = loraga("train", *arguments("llama", "adapter_dropout=0.2", "method.offset=base"), code=2)
    assert "method.offset=adapter" in out


def test_preview_shows_rows_and_trains_nothing(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments(), "--preview")
    assert "row 1" in out
    assert re.search(r"^\d+\+\d+=⟦#### \d+</s>⟧$", out, re.MULTILINE)
    assert "The loss counts the text between ⟦ and ⟧." in out
    assert not Path("runs").exists()


def test_a_dry_run_lists_what_is_to_do_and_does_nothing(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("train", *arguments(), "--dry-run")
    assert "lora_ga, rank 4" in out
    assert "trainer.extra" not in out
    assert len(out.splitlines()) < 24, "it fits on a screen"
    assert "to do: 16 rows, 14 layers" in out
    assert "to do: 6 steps" in out
    assert "parameters train" in out
    assert "training: about" in out
    assert not Path("runs").exists()
    loraga("train", *arguments())
    out = loraga("train", *arguments(), "--dry-run")
    assert "cached: " in out
    assert "finished: " in out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_dry_run_forecasts_every_family(loraga: Loraga, arguments: Arguments, family: str, method: str) -> None:
    assert "training: about" in loraga("train", *arguments(family, f"method={method}"), "--dry-run")


def test_bad_rows_leave_no_run_folder(loraga: Loraga, arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    out = loraga("train", *arguments("llama", "dataset.train_file=bad.jsonl"), code=2)
    assert "bad.jsonl:2" in out
    assert not any(Path("runs").glob("[!.]*"))


def test_a_run_of_one_step_learns_something(loraga: Loraga, arguments: Arguments) -> None:
    """A warm-up takes the first step, with rate 0; a run has no other step to learn in."""
    rows = ["method=lora", "trainer.max_steps=null", "trainer.batch_size=120", "trainer.micro_batch_size=null"]
    out = loraga("train", *arguments("llama", *rows, "trainer.learning_rate=0.1"))
    assert "no warm-up: trainer.warmup_ratio=0.03 would leave none of 1 steps at the full learning rate" in out
    assert "114 training rows, trainer.batch_size=120" in out
    adapter = load_file(only_run() / "adapter_model.safetensors")
    # AdamW's first step moves every element by the learning rate
    assert all(float(item.abs().max()) == pytest.approx(0.1, rel=1e-3) for key, item in adapter.items() if "_B." in key)
    assert points(only_run())[0]["learning_rate"] == 0.1
    assert "changed no weight" not in out


def test_a_link_of_one_step_learns_something(loraga: Loraga, arguments: Arguments) -> None:
    links = ["method=rac_lora", "method.link_steps=1", "method.link_schedule=link", "method.link_warmup=null"]
    assert "changed no weight" not in loraga("train", *arguments("llama", *links, "trainer.max_steps=2"))
    assert [point["learning_rate"] for point in points(only_run()) if "loss" in point] == [1e-2, 1e-2]


def test_a_training_that_changes_nothing_says_so(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure=None: None)
    out = loraga("train", *arguments("llama", "method=lora"))
    assert "warning  training changed no weight" in out


@pytest.mark.parametrize(("logging_steps", "mean_of"), [(4, [19, 20]), (15, [19, 20]), (1, [20])])
def test_the_reported_training_loss_is_that_of_the_last_steps(
    loraga: Loraga, arguments: Arguments, logging_steps: int, mean_of: list[int]
) -> None:
    """With evaluations at the end alone, since the training loss is logged beside each of them."""
    options = ["method=full", "trainer.eval_steps=100", "trainer.save_steps=100", "trainer.max_steps=20"]
    loraga("train", *arguments("llama", *options, "name=each", "trainer.logging_steps=1"))
    printed = loraga("train", *arguments("llama", *options, "name=some", f"trainer.logging_steps={logging_steps}"))
    each = {point["step"]: point["loss"] for point in points(Path("runs/each")) if "loss" in point}
    reported = json.loads(Path("runs/some/manifest.json").read_text())["training_loss"]
    assert reported == pytest.approx(sum(each[step] for step in mean_of) / len(mean_of), abs=1e-3)
    assert points(Path("runs/some"))[-2]["step"] == 20
    of = f"(mean of the last {len(mean_of)} steps)" if len(mean_of) > 1 else "(of the last step)"
    assert f"training loss {reported:.4f} {of}, validation loss" in printed
    assert f"| training loss {of} | {reported:.4f} |" in Path("runs/some/README.md").read_text()


def test_a_training_that_stops_early_logs_its_last_steps(loraga: Loraga, arguments: Arguments) -> None:
    options = ["trainer.early_stopping_patience=1", "trainer.learning_rate=1e-8", "trainer.logging_steps=5"]
    loraga("train", *arguments("llama", "method=lora", "trainer.max_steps=40", *options))
    run = only_run()
    steps = json.loads((run / "manifest.json").read_text())["steps"]
    assert steps < 40
    assert max(point["step"] for point in points(run) if "loss" in point) == steps
