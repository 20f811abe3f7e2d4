"""`loraga inspect` on runs and adapters: every figure is that of numpy on the dense changes that PEFT computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from scipy.linalg import orth, subspace_angles
from transformers import AutoModelForCausalLM

from lora_ga_cli.digests import written
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.stages.inspect.gradient import gradient_of_run
from lora_ga_cli.stages.inspect.run import inspect_run, read_inspection
from lora_ga_cli.training.run_files import result_entries
from lora_ga_cli.training.run_folder import RunFolder
from tests.helpers import Loraga
from tests.stages.inspect.runs import train

LAYER = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, saved_bases: dict[str, Path]) -> dict[str, Path]:
    """Runs by name: LoRA-GA; rsLoRA of another rank, seed and fewer layers; and bottleneck adapters."""
    folder, base = tmp_path_factory.mktemp("runs"), saved_bases["llama"]
    options = {
        "ga": ["method=lora_ga"],
        "rs": ["method=rslora", "rank=3", "seed=5", "target_modules=[q_proj,down_proj]"],
        "bottleneck": ["method=bottleneck_adapter", "trainer.max_steps=1"],
    }
    return {name: train(folder, base, name, *given) for name, given in options.items()}


def change_of(folder: Path, base: Path, layer: str = LAYER) -> np.ndarray:
    """ΔW as PEFT alone computes it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), folder)
    module: Any = model.get_base_model().get_submodule(layer)
    return np.asarray(module.get_delta_weight("default").detach().double())


def weight_of(base: Path, layer: str = LAYER) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    return np.asarray(model.get_submodule(layer).weight.detach())


def as_json(text: str) -> Any:
    return json.loads(next(line for line in text.splitlines() if line.startswith("{")))


def share(part: np.ndarray, whole: np.ndarray) -> float:
    return float((part**2).sum() / (whole**2).sum())


def test_the_figures_of_a_run_are_those_of_its_dense_changes(
    runs: dict[str, Path], saved_bases: dict[str, Path]
) -> None:
    run = RunFolder(runs["ga"])
    found = inspect_run(run, with_base=False)
    kept = read_inspection(run)
    assert kept is not None
    assert {name: kept[name] for name in found} == found
    assert len(found["adapter"]["layers"]) == 14
    layer, change = found["adapter"]["layers"][LAYER], change_of(run.path, saved_bases["llama"])
    singular = np.linalg.svd(change, compute_uv=False)[:8]
    assert (layer["shape"], layer["rank"]) == (list(change.shape), 8)  # 4 trained and 4 initial
    assert layer["singular"] == pytest.approx(singular, rel=1e-4)
    assert layer["norm"] == pytest.approx(np.linalg.norm(change), rel=1e-5)
    assert layer["cut"]["4"] == pytest.approx(np.linalg.norm(singular[4:]) / np.linalg.norm(singular), rel=1e-3)
    assert (layer["relative_norm"], layer["amplification"], layer["intruders"]) == (None, None, None)

    a0, b0 = LoraInit.load(run.path / "init.safetensors").factors[LAYER]
    rows, columns = orth(a0.double().T.numpy()), orth(b0.double().numpy())
    assert layer["within_start"]["left"] == pytest.approx(share(columns @ columns.T @ change, change), rel=1e-4)
    assert layer["within_start"]["right"] == pytest.approx(share(change @ rows @ rows.T, change), rel=1e-4)
    artifact = gradient_of_run(run).artifact
    assert artifact is not None
    u = artifact.factors[LAYER].left[:, :8].double().numpy()  # LoRA-GA at rank 4 takes 8 directions
    assert layer["within_gradient"]["left"] == pytest.approx(share(u @ u.T @ change, change), rel=1e-4)
    assert layer["within_gradient"]["left"] >= layer["within_start"]["left"] - 1e-6  # B0 is among them


def test_totals_are_those_of_all_layers_as_one_change(runs: dict[str, Path]) -> None:
    found = inspect_run(RunFolder(runs["ga"]), with_base=False)["adapter"]
    layers, together = list(found["layers"].values()), found["totals"]
    whole = np.concatenate([layer["singular"] for layer in layers])
    lost = np.concatenate([layer["singular"][2:] for layer in layers])
    assert together["norm"] == pytest.approx(np.linalg.norm(whole))
    assert together["cut"]["2"] == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(whole))
    shares = sum(layer["within_start"]["either"] * layer["norm"] ** 2 for layer in layers)
    assert together["within_start"]["either"] == pytest.approx(shares / together["norm"] ** 2)


def test_figures_against_the_base_are_kept_until_the_adapter_changes(
    loraga: Loraga, runs: dict[str, Path], saved_bases: dict[str, Path], tmp_path: Path
) -> None:
    run = RunFolder(Path(shutil.copytree(runs["rs"], tmp_path / "copy")))
    out = loraga("inspect", str(run.path), "--with-base", "--modules", "q_proj", "--all")
    assert ("mlp.down_proj" in out, "1.self_attn.q_proj" in out, "intruders" in out) == (False, True, True)
    kept = inspect_run(run, with_base=False)["adapter"]["layers"]
    change, weight = change_of(run.path, saved_bases["llama"]), weight_of(saved_bases["llama"])
    u, _, vh = np.linalg.svd(change)
    along = np.linalg.norm(u[:, :3].T @ weight @ vh[:3].T)
    layer = kept[LAYER]
    assert layer["relative_norm"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(weight), rel=1e-4)
    assert layer["amplification"] == pytest.approx(np.linalg.norm(change) / along, rel=1e-4)
    of_tuned, of_weight = (np.linalg.svd(item)[0] for item in (weight + change, weight))
    count = int((np.abs(of_tuned[:, :10].T @ of_weight).max(1) < 0.5).sum())
    assert layer["intruders"] == {"count": count, "of": 10, "threshold": 0.5}
    assert kept["model.layers.0.mlp.down_proj"]["intruders"] is None  # it was not selected

    file = run.path / "adapter_model.safetensors"
    save_file({name: 2 * item for name, item in load_file(file).items()}, file)
    run.update_manifest(**result_entries(run))  # as if it was trained again
    assert read_inspection(run) is None
    assert inspect_run(run, with_base=False)["adapter"]["layers"][LAYER]["intruders"] is None


def test_two_runs_are_compared(
    loraga: Loraga, runs: dict[str, Path], saved_bases: dict[str, Path], tmp_path: Path
) -> None:
    folders = [str(runs[name]) for name in ("ga", "rs")]
    found = as_json(loraga("inspect", *folders, "--modules", "q_proj", "--figures", str(tmp_path), "--json"))
    assert set(found["layers"]) == {"model.layers.0.self_attn.q_proj", LAYER}
    first, second = (change_of(Path(folder), saved_bases["llama"]) for folder in folders)
    layer = found["layers"][LAYER]
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    assert layer["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert layer["norms"] == pytest.approx([np.linalg.norm(item) for item in (first, second)], rel=1e-4)
    (u, _, vh), (other_u, _, other_vh) = np.linalg.svd(first), np.linalg.svd(second)
    assert layer["left"]["leading"] == pytest.approx((u[:, 0] @ other_u[:, 0]) ** 2, abs=1e-4)
    assert layer["right"]["all"] == pytest.approx(np.linalg.norm(vh[:8] @ other_vh[:3].T) ** 2 / 3, abs=1e-4)
    assert layer["right"]["by_chance"] == pytest.approx(8 / 48)
    angles = np.degrees(np.sort(subspace_angles(u[:, :8], other_u[:, :3])))
    assert layer["left"]["angles"] == pytest.approx(angles, abs=0.05)
    kind = found["kinds"]["self_attn.q_proj"]["left"]
    assert np.asarray(kind).shape == (8, 3)
    assert kind[0][0] == pytest.approx(np.mean([item["left"]["leading"] for item in found["layers"].values()]))
    assert "model.layers.0.mlp.up_proj" in found["only_in_first"]
    assert (tmp_path / "similarity.png").exists()


def test_factors_are_compared_as_they_trained(loraga: Loraga, runs: dict[str, Path]) -> None:
    """LoRA-GA's saved A is ``[A; ΔA]``; A alone is compared."""
    found = as_json(loraga("inspect", str(runs["ga"]), str(runs["rs"]), "--factors", "--json"))
    tensors = [load_file(runs[name] / "adapter_model.safetensors") for name in ("ga", "rs")]
    a, other_a = (item[f"base_model.model.{LAYER}.lora_A.weight"].double().numpy() for item in tensors)
    vh, other_vh = (np.linalg.svd(item, full_matrices=False)[2] for item in (a[:4], other_a))
    assert found["layers"][LAYER]["right"]["all"] == pytest.approx(np.linalg.norm(vh @ other_vh.T) ** 2 / 3, abs=1e-5)


def test_an_adapter_of_peft_alone_is_inspected(
    loraga: Loraga, saved_bases: dict[str, Path], runs: dict[str, Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved_bases["llama"])
    config = LoraConfig(r=2, target_modules=["v_proj"], use_dora=True, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained("theirs")
    out = loraga("inspect", "theirs", "--with-base")
    assert "rank 2, 2 layers" in out
    assert "DoRA: ΔW is the product s·B A" in out
    assert Path("inspect-theirs/adapter.png").exists()
    other = loraga("inspect", "theirs", str(runs["rs"]), code=2)
    assert "these adapters have no layer in common: theirs changes model.layers.0.self_attn.v_proj and rs" in other


def test_what_is_no_lora_adapter_is_said(loraga: Loraga, runs: dict[str, Path]) -> None:
    reason = "it holds bottleneck adapters, and only LoRA adapters change weights by a product s·B A"
    assert reason in loraga("inspect", str(runs["bottleneck"]))
    assert reason in loraga("inspect", str(runs["ga"]), str(runs["bottleneck"]), code=2)
    assert inspect_run(RunFolder(runs["bottleneck"]), with_base=False)["adapter"] is None


def test_layers_that_are_not_there_are_refused(loraga: Loraga, runs: dict[str, Path]) -> None:
    out = loraga("inspect", str(runs["rs"]), "--layers", "x_proj", code=2)
    assert "--layers x_proj: matches no full name of a layer of the adapter" in out
    assert "did you mean q_proj, as in model.layers.0.self_attn.q_proj?" in out


def test_what_no_lora_adapter_has_cannot_be_measured_against_the_base(loraga: Loraga, runs: dict[str, Path]) -> None:
    out = loraga("inspect", str(runs["bottleneck"]), "--with-base", code=2)
    assert "--with-base: " in out


def test_json_has_the_selected_layers_and_the_files_of_figures(loraga: Loraga, runs: dict[str, Path]) -> None:
    found = as_json(loraga("inspect", str(runs["ga"]), "--modules", "q_proj", "--json"))
    for part in ("gradient", "adapter"):
        assert {name.rpartition(".")[2] for name in found[part]["layers"]} == {"q_proj"}
    assert found["adapter"]["totals"]["layers"] == 2
    assert [Path(file).name for file in found["figures"]] == ["energy.png", "adapter.png"]
    kept = read_inspection(RunFolder(runs["ga"]))
    assert kept is not None
    assert len(kept["adapter"]["layers"]) == 14


@pytest.mark.parametrize("command", [["ga"], ["ga", "rs"], ["rs", "ga"], ["ga", "rs", "--factors"]], ids=" ".join)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "init.safetensors"])
def test_a_damaged_file_of_a_run_is_an_error(
    loraga: Loraga, runs: dict[str, Path], tmp_path: Path, file: str, command: list[str]
) -> None:
    """Also where one bit is flipped, with which the file still can be read."""
    copy = Path(shutil.copytree(runs["ga"], tmp_path / "ga"))
    content = bytearray((copy / file).read_bytes())
    content[max(content.rfind(b"%d" % digit) for digit in range(10))] ^= 1  # another digit
    (copy / file).write_bytes(content)
    words = [{"ga": str(copy), "rs": str(runs["rs"])}.get(word, word) for word in command]
    assert f"{file} does not have the bytes that were written" in " ".join(loraga("inspect", *words, code=2).split())


def test_initial_factors_that_are_missing_are_an_error(loraga: Loraga, runs: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs["ga"], tmp_path / "ga"))
    (copy / "init.safetensors").unlink()
    assert "init.safetensors is missing" in " ".join(loraga("inspect", str(copy), code=2).split())


class TestGradientOfARun:
    @pytest.fixture
    def copy(self, runs: dict[str, Path], tmp_path: Path) -> RunFolder:
        """A run with a cache of its own."""
        copy = RunFolder(Path(shutil.copytree(runs["ga"], tmp_path / "ga")))
        shutil.copytree(runs["ga"].parent / "cache", tmp_path / "own")
        config = copy.read_config() | {"cache_dir": str(tmp_path / "own")}
        copy.config_file.write_text(yaml.safe_dump(config))
        copy.update_manifest(files=copy.manifest["files"] | {copy.config_file.name: written(copy.config_file)})
        return copy

    def test_what_was_found_of_it_stays_when_the_cache_is_cleaned(
        self, loraga: Loraga, copy: RunFolder, tmp_path: Path
    ) -> None:
        before = inspect_run(copy, with_base=False)
        shutil.rmtree(tmp_path / "own")
        printed = loraga("inspect", str(copy.path), "--modules", "q_proj", "--json")
        shown = as_json(printed)
        assert set(shown["gradient"]["layers"]) == {LAYER, LAYER.replace("1", "0")}
        after = read_inspection(copy)
        assert after is not None
        assert after["gradient"] == before["gradient"]
        layers = after["adapter"]["layers"]
        assert layers[LAYER]["within_gradient"] == before["adapter"]["layers"][LAYER]["within_gradient"] is not None
        copy.update_manifest(gradient="another")
        assert inspect_run(copy, with_base=False)["gradient"] is None

    def test_damage_is_not_said_to_be_absence(self, loraga: Loraga, copy: RunFolder, tmp_path: Path) -> None:
        (file,) = (tmp_path / "own" / "gradients").glob("*/factors.safetensors")
        file.write_bytes(file.read_bytes()[:-1])
        damage = "factors.safetensors does not have the bytes that were written; loraga estimate-grad"
        printed = " ".join(loraga("inspect", str(copy.path)).split())
        assert damage in printed
        assert "not in the cache any more" not in printed
        assert damage in " ".join(loraga("report", str(copy.path), code=1).split())
