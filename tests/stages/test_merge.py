"""`loraga merge`: a plain model that computes what the adapter computes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import build_batch, build_model
from tests.helpers import Arguments, Loraga, only_run


def test_the_merged_model_is_plain_transformers(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path]
) -> None:
    loraga("train", *arguments())
    loraga("merge", str(only_run()), "--output", "plain")
    assert AutoTokenizer.from_pretrained("plain").eos_token == "</s>"
    batch = build_batch("llama")
    base = AutoModelForCausalLM.from_pretrained(saved_bases["llama"], dtype=torch.float32)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, only_run()).eval()(**batch).logits
        found = AutoModelForCausalLM.from_pretrained("plain", dtype=torch.float32).eval()(**batch).logits
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_type_and_shards_are_as_asked(loraga: Loraga, arguments: Arguments, dtype: str) -> None:
    loraga("train", *arguments())
    out = loraga("merge", str(only_run()), "--output", "plain", "--dtype", dtype, "--max-shard-size", "40KB")
    assert dtype in out
    assert len(list(Path("plain").glob("*.safetensors"))) > 1
    assert json.loads(Path("plain/config.json").read_text())["dtype"] == dtype


def test_another_base_is_refused(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path], tmp_path: Path
) -> None:
    loraga("train", *arguments())
    shutil.copytree(saved_bases["llama"], tmp_path / "same")
    shutil.copytree(saved_bases["llama"], tmp_path / "other")
    build_model("llama", seed=9).save_pretrained(tmp_path / "other")
    assert "is not the base" in loraga("merge", str(only_run()), "--base", "./other", code=2)
    assert not (only_run() / "merged").exists()
    loraga("merge", str(only_run()), "--base", "./same")


def test_a_merge_that_is_complete_is_not_done_again(loraga: Loraga, arguments: Arguments) -> None:
    """As the second of two equal commands finds it, of which the first was killed at its very end."""
    loraga("train", *arguments())
    run, weights = str(only_run()), only_run() / "merged" / "model.safetensors"
    loraga("merge", run)
    before = weights.stat().st_ino, weights.read_bytes()
    assert "holds this merge already" in loraga("merge", run)
    assert (weights.stat().st_ino, weights.read_bytes()) == before
    assert "exists and is not empty" in loraga("merge", run, "--dtype", "bfloat16", code=2)
    weights.write_bytes(before[1][:-1])
    said = loraga("merge", run, code=2)
    assert "model.safetensors has" in said
    assert "merged, and run this command again" in said
    shutil.rmtree(weights.parent)
    loraga("merge", run)
    assert weights.read_bytes() == before[1]


def test_a_folder_that_is_taken_is_left_alone(loraga: Loraga, arguments: Arguments) -> None:
    loraga("train", *arguments())
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    assert "exists and is not empty" in loraga("merge", str(only_run()), "--output", "taken", code=2)
    assert Path("taken/file").read_text() == "mine"


def test_all_wrong_options_are_said_at_once(loraga: Loraga) -> None:
    out = loraga("merge", ".", "..", "--output", "x", "--dtype", "float8", code=2)
    assert "--dtype float8" in out
    assert "--output names one folder" in out


def test_merging_a_recipe_trains_first(loraga: Loraga, arguments: Arguments) -> None:
    out = loraga("merge", *arguments())
    assert out.index("train  finished") < out.index("merged")


@pytest.mark.parametrize("method", ["lora_ga", "full", "bottleneck_adapter", "rac_lora"])
def test_every_file_is_as_readable_as_the_umask_says(loraga: Loraga, arguments: Arguments, method: str) -> None:
    """Of a run, its checkpoints, a merged model and the cache, so that another user can serve them."""
    before = os.umask(0o022)
    try:
        loraga("train", *arguments("llama", f"method={method}", "target_modules=[q_proj]"))
        if method != "bottleneck_adapter":
            loraga("merge", str(only_run()), "--output", "plain")
    finally:
        os.umask(before)
    locks = list(Path().rglob("*.lock"))
    private = [item for item in Path().rglob("*") if item.is_file() and item.stat().st_mode & 0o777 != 0o644]
    assert [item for item in private if item not in locks] == []
    assert len(list(only_run().rglob("*.safetensors"))) > 1


def test_merging_needs_base_and_adapter_alone(loraga: Loraga, arguments: Arguments, sums_file: Path) -> None:
    """Neither the training data nor the folder where the run began."""
    loraga("train", *arguments("llama", f"dataset.train_file={sums_file.name}"))
    run = only_run()
    sums_file.unlink()
    loraga("merge", str(run), "--output", "here")
    Path("elsewhere").mkdir()
    with contextlib.chdir("elsewhere"):
        loraga("merge", f"../{run}", "--output", "there")
    here, there = (AutoModelForCausalLM.from_pretrained(name) for name in ("here", "elsewhere/there"))
    assert all(torch.equal(a, b) for a, b in zip(here.parameters(), there.parameters(), strict=True))


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_other_tasks_merge_without_their_rows(
    loraga: Loraga, arguments: Arguments, sums_file: Path, family: str
) -> None:
    loraga("train", *arguments(family, "method=lora", "trainer.max_steps=2"))
    sums_file.unlink()
    assert "logits equal the adapter's" in loraga("merge", str(only_run()))


def test_a_complete_model_needs_no_base(loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path]) -> None:
    shutil.copytree(saved_bases["llama"], "base")
    loraga("train", *arguments("llama", "method=full", "model.path=./base"))
    shutil.rmtree("base")
    loraga("merge", str(only_run()), "--output", "plain")
    loraga("eval", str(only_run()))


def test_a_base_that_was_moved_is_asked_for_by_its_option(
    loraga: Loraga, arguments: Arguments, saved_bases: dict[str, Path]
) -> None:
    shutil.copytree(saved_bases["llama"], "base")
    loraga("train", *arguments("llama", "model.path=base", "method=lora"))
    Path("base").rename("moved")
    run = str(only_run())
    for command in ("merge", "eval"):
        out = loraga(command, run, code=2)
        assert "was trained on base, and there is no such folder now" in out
        assert f"loraga eval {run} model.path=FOLDER, loraga merge {run} --base FOLDER" in out
    loraga("merge", run, "--base", "moved")
    loraga("eval", run, "model.path=moved")
    build_model("llama", seed=9).save_pretrained("moved")
    assert "is not the base" in loraga("eval", run, "model.path=moved", "eval.limit=3", code=2)
