"""`loraga export`: GGUF by llama.cpp's own converters, checked by loading it with llama.cpp where that is installed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_ga_cli.model.probe import PROBE_TEXTS
from lora_ga_cli.stages import export as stage
from lora_ga_cli.stages.file_types import FileType
from lora_ga_cli.stages.llama_cpp import check_file, run_converter
from lora_ga_cli.training.run_files import result_entries
from lora_ga_cli.training.run_folder import RunFolder
from tests.conftest import byte_tokenizer
from tests.helpers import Arguments, Loraga

SOURCE = os.environ.get("LORAGA_LLAMA_CPP")
CONVERTER = """
import json, pathlib, shutil, sys
source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
here = pathlib.Path(__file__).parent
(here / "given.json").write_text(json.dumps(sys.argv[1:]))
shutil.copytree(source, here / "source", dirs_exist_ok=True)
out.write_bytes(b"GGUF")
"""
REFUSAL = "import sys\nsys.exit('INFO: reading\\nNotImplementedError: BPE pre-tokenizer was not recognized')\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with programs in the place of llama.cpp's converters: they note what they are given."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (folder / name).write_text(CONVERTER)
    monkeypatch.setattr(stage, "can_load", lambda: False)
    monkeypatch.delenv("LORAGA_LLAMA_CPP", raising=False)
    return folder


@pytest.fixture
def run(loraga: Loraga, arguments: Arguments) -> str:
    loraga("train", *arguments("llama", "name=r", "trainer.max_steps=2"))
    return "runs/r"


def test_a_model_is_merged_and_converted(loraga: Loraga, run: str, fake: Path) -> None:
    out = loraga("export", run, "--format", "gguf", "--llama-cpp", str(fake), "--type", "f32")
    assert "the file was not loaded to check it: pip install" in out
    folder = Path(run, "gguf")
    assert {file.name for file in folder.iterdir()} == {"r-f32.gguf", "Modelfile"}
    assert json.loads((fake / "given.json").read_text())[-2:] == ["--outtype", "f32"]
    loraga("merge", run, "--output", "plain")
    converted, merged = (load_file(place / "model.safetensors") for place in (fake / "source", Path("plain")))
    assert all(torch.equal(tensor, merged[name]) for name, tensor in converted.items())
    assert (folder / "Modelfile").read_text().splitlines() == [
        "FROM ./r-f32.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        'PARAMETER stop "</s>"',
    ]
    assert [item.name for item in Path(run).iterdir() if item.name.startswith(".")] == []


def test_an_adapter_is_written_with_its_scaling_inside(loraga: Loraga, arguments: Arguments, fake: Path) -> None:
    """llama.cpp multiplies by alpha / rank alone, and this adapter is rank-stabilized."""
    run = "runs/r"
    loraga("train", *arguments("llama", "name=r", "method=rslora", "trainer.max_steps=2"))
    loraga("export", run, "--format", "gguf-lora", "--llama-cpp", str(fake), "--output", "lora")
    described = json.loads((fake / "source" / "adapter_config.json").read_text())
    assert json.loads(Path(run, "adapter_config.json").read_text())["use_rslora"] is True
    assert (described["lora_alpha"], described["use_rslora"]) == (1, False)
    theirs, ours = (load_file(place / "adapter_model.safetensors") for place in (fake / "source", Path(run)))
    for key, a in theirs.items():
        if key.endswith(".lora_A.weight"):
            other = key.replace("lora_A", "lora_B")
            rank = a.shape[0]
            expected = 16 / rank**0.5 * ours[other] @ ours[key]
            assert float(expected.abs().max()) > 0
            assert torch.allclose(1 / rank * theirs[other] @ a, expected, atol=1e-6)
    assert "ADAPTER ./r-f16.gguf" in Path("lora/Modelfile").read_text()


def test_everything_wrong_is_said_before_anything_is_merged(loraga: Loraga, run: str, fake: Path) -> None:
    Path("taken").mkdir()
    Path("taken/file").touch()
    out = loraga("export", run, "--format", "gguf", "--output", "taken", code=2)
    assert "taken: exists and is not empty" in out
    assert "no folder of it is named (--llama-cpp FOLDER, or $LORAGA_LLAMA_CPP; git clone" in out
    assert "is not llama.cpp's source" in loraga("export", run, "--format", "gguf", "--llama-cpp", run, code=2)


def test_the_folder_may_be_named_by_the_environment(
    loraga: Loraga, run: str, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAGA_LLAMA_CPP", str(fake))
    loraga("export", run, "--format", "gguf")


def test_a_failing_converter_is_quoted_and_leaves_nothing(loraga: Loraga, run: str, fake: Path) -> None:
    (fake / "convert_hf_to_gguf.py").write_text(REFUSAL)
    out = loraga("export", run, "--format", "gguf", "--llama-cpp", str(fake), code=1)
    assert "failed, and said: NotImplementedError: BPE pre-tokenizer was not recognized" in out
    assert not Path(run, "gguf").exists()
    assert [item.name for item in Path(run).iterdir() if item.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("family", "method", "form", "message"),
    [
        ("bert", "lora", "gguf", "GGUF is for causal language models"),
        ("llama", "dora", "gguf-lora", "its adapter has more than LoRA's factors"),
        ("llama", "bottleneck_adapter", "gguf-lora", "GGUF has LoRA adapters only"),
    ],
)
def test_what_gguf_has_no_place_for_is_refused(
    loraga: Loraga, arguments: Arguments, fake: Path, family: str, method: str, form: str, message: str
) -> None:
    loraga("train", *arguments(family, f"method={method}", "name=r", "trainer.max_steps=1"))
    assert message in loraga("export", "runs/r", "--format", form, "--llama-cpp", str(fake), code=2)


def test_all_that_ends_an_answer_is_a_stop(loraga: Loraga, run: str, fake: Path) -> None:
    """A Modelfile knows no escapes: a text with quotes stands in three of them."""
    file = Path(run, "manifest.json")
    ends = {"tokens": [13], "names": ["x"], "base": [2], "text": '\n"end"'}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ends": ends}))
    for form in ("gguf", "gguf-lora"):
        loraga("export", run, "--format", form, "--llama-cpp", str(fake), "--output", form)
        text = Path(form, "Modelfile").read_text()
        assert 'PARAMETER stop "</s>"\n' in text
        assert 'PARAMETER stop """\n"end""""\n' in text
    (named,) = byte_tokenizer().convert_ids_to_tokens([13])
    assert f'PARAMETER stop "{named}"\n' in text


def test_what_is_converted_lies_beside_the_output_while_it_is_written(loraga: Loraga, run: str, fake: Path) -> None:
    for form in ("gguf", "gguf-lora"):
        loraga("export", run, "--format", form, "--llama-cpp", str(fake), "--output", f"out/{form}")
        source = Path(json.loads((fake / "given.json").read_text())[0])
        assert Path("out").resolve() in source.resolve().parents
    assert {item.name for item in Path("out").iterdir()} == {"gguf", "gguf-lora"}


def test_an_output_that_cannot_be_a_folder_is_a_fault_of_its_option(loraga: Loraga, run: str, fake: Path) -> None:
    Path("taken").touch()
    for output in ("taken", "taken/out"):
        out = loraga("export", run, "--format", "gguf", "--llama-cpp", str(fake), "--output", output, code=2)
        assert "--output: taken" in out


def test_an_adapter_of_experts_is_merged_instead(loraga: Loraga, run: str, fake: Path) -> None:
    file = Path(run, "adapter_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_parameters": ["experts.down_proj"]}))
    RunFolder(Path(run)).update_manifest(**result_entries(RunFolder(Path(run))))  # as if it had been written so
    out = loraga("export", run, "--format", "gguf-lora", "--llama-cpp", str(fake), code=2)
    assert "its adapter changes parameters of experts" in out
    assert "--format gguf writes base and adapter in one file" in out


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that Llama 2 has, which llama.cpp knows: single characters, and bytes for all others."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]:
        vocabulary[token] = len(vocabulary)
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def real(loraga: Loraga, arguments: Arguments) -> str:
    """A run whose base llama.cpp knows; without llama.cpp the test is skipped."""
    if SOURCE is None:
        pytest.skip("LORAGA_LLAMA_CPP names no folder with llama.cpp's source")
    pytest.importorskip("xllamacpp", reason="pip install 'loraga[gguf]'")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(llama_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained("base")
    llama_tokenizer().save_pretrained("base")
    loraga("train", *arguments("llama", "name=r", "model.path=base", "trainer.learning_rate=0.05"))
    return "runs/r"


def test_llama_cpp_computes_what_the_model_does(loraga: Loraga, real: str) -> None:
    assert SOURCE is not None
    for kind, allowed in (("f32", 2e-2), ("f16", 5e-2)):
        options = ["--format", "gguf", "--type", kind, "--llama-cpp", SOURCE, "--output", kind, "--json"]
        found = json.loads(loraga("export", real, *options).splitlines()[0])
        assert found["difference"] < allowed
    assert "reads a text as other tokens" not in loraga("export", real, *options[:6], "--output", "again")


def test_llama_cpp_computes_what_the_adapter_does(loraga: Loraga, real: str) -> None:
    """Against PEFT alone; the base without the adapter is far from it."""
    assert SOURCE is not None
    loraga("export", real, "--format", "gguf-lora", "--type", "f32", "--llama-cpp", SOURCE, "--output", "lora")
    run_converter(Path(SOURCE) / "convert_hf_to_gguf.py", ["base", "--outfile", "base.gguf", "--outtype", "f32"])
    base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained("base")
    with torch.no_grad():
        plain = base(**tokenizer(PROBE_TEXTS[0], return_tensors="pt")).logits[0, -1].log_softmax(-1)
    model = PeftModel.from_pretrained(base, real).eval()
    with torch.no_grad():
        tuned = model(**tokenizer(PROBE_TEXTS[0], return_tensors="pt")).logits[0, -1].log_softmax(-1)
    assert float((plain - tuned).abs().max()) > 0.5
    worst, same_tokens = check_file(Path("base.gguf"), model, tokenizer, FileType.f32, adapter=Path("lora/r-f32.gguf"))
    assert worst < 2e-2
    assert same_tokens
