"""Writes a run's result in the GGUF format of llama.cpp and Ollama: base and adapter in one file, or the adapter."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file
from transformers import AutoTokenizer

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput, RunError
from lora_ga_cli.files import atomic_folder, file_sizes, read_json
from lora_ga_cli.lora.convert import check_convertible
from lora_ga_cli.lora.export import WEIGHTS_FILE, write_adapter
from lora_ga_cli.lora.links import read_adapter, with_alpha_1
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.loading import find_source, load_model
from lora_ga_cli.report.console import quiet, size, step, warn
from lora_ga_cli.report.front_matter import shown_base
from lora_ga_cli.stages.llama_cpp import (
    ADAPTER_CONVERTER,
    MODEL_CONVERTER,
    can_load,
    check_file,
    find_converter,
    run_converter,
)
from lora_ga_cli.stages.merge import MergeOptions, merge
from lora_ga_cli.training.run_folder import RunFolder

MODELFILE = "Modelfile"
FACTORS = (".lora_A.weight", ".lora_B.weight")
FileType = Literal["f32", "f16", "bf16", "q8_0"]
MERGED_DTYPE = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": None}
"""The type of the model that is converted, by the type of the file's weights; None for the base's."""


@dataclass(frozen=True)
class ExportOptions:
    """What is written.

    Args:
        adapter: the adapter alone, for llama.cpp's ``--lora`` and Ollama's ``ADAPTER``, and not the merged model.
        output: folder to write; ``RUN/gguf`` or ``RUN/gguf-lora`` when None.
        file_type: type of the written weights.
        llama_cpp: a folder with llama.cpp's source.
        base: another place of the same base model.
    """

    adapter: bool = False
    output: Path | None = None
    file_type: FileType = "f16"
    llama_cpp: Path | None = None
    base: str | None = None


def export(run: RunFolder, config: Config, options: ExportOptions) -> dict[str, Any]:
    """Writes a GGUF file of a finished run, and an Ollama Modelfile beside it.

    Returns:
        The folder, its files with their sizes in bytes, and the largest difference that the check found (None where
        nothing was checked).

    Raises:
        InvalidInput: all that is wrong, before anything is merged.
        UserError: the converter fails, or what it wrote does not compute the same.
    """
    folder = options.output or run.path / ("gguf-lora" if options.adapter else "gguf")
    faults = list(_faults(run, config, folder, options))
    converter = None
    try:
        converter = find_converter(options.llama_cpp, ADAPTER_CONVERTER if options.adapter else MODEL_CONVERTER)
    except InvalidInput as error:
        faults += error.faults
    if faults or converter is None:
        raise InvalidInput(faults)
    name = f"{run.path.resolve().name}-{options.file_type}.gguf"
    with atomic_folder(folder) as temporary:
        if options.adapter:
            _write_adapter(run, config, converter, temporary / name, options.file_type)
            text, difference = _adapter_modelfile(name, run), None
        else:
            with _merged(run, config, options) as model:
                given = [str(model), "--outfile", str(temporary / name), "--outtype", options.file_type]
                run_converter(converter, given)
                difference = _checked(temporary / name, model, config, options)
                text = _modelfile(name, model)
        if not (temporary / name).is_file():
            raise RunError(f"llama.cpp's {converter.name} ended without an error, and wrote no {name}")
        (temporary / MODELFILE).write_text(text, encoding="utf-8")
    sizes = file_sizes(folder)
    step("exported", f"{folder / name} ({size(sizes[name])}), with an Ollama {MODELFILE} beside it")
    return {"run": run.path, "folder": folder, "files": sizes, "difference": difference}


def _faults(run: RunFolder, config: Config, folder: Path, options: ExportOptions) -> Iterator[Fault]:
    if config.model.task != "causal_lm":
        yield Fault(str(run.path), f"GGUF is for causal language models, and this is model.task={config.model.task}")
    if folder.exists() and any(folder.iterdir()):
        yield Fault(str(folder), "exists and is not empty", "give another --output, or remove it")
    if not options.adapter:
        return
    output = method_of(config).output
    whole = "--format gguf writes base and adapter in one file" if output.mergeable else ""
    try:
        check_convertible(run.path)
    except RunError:
        yield Fault(str(run.path), f"holds {output.label}, and GGUF has LoRA adapters only", whole)
        return
    others = [
        name for name in load_file(run.path / WEIGHTS_FILE) if not name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
    if others:
        yield Fault(str(run.path), f"its adapter has more than LoRA's factors ({others[0]}), and GGUF has not", whole)


@contextlib.contextmanager
def _merged(run: RunFolder, config: Config, options: ExportOptions) -> Iterator[Path]:
    """A folder with the merged model, which is removed in the end."""
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=run.path) as parent:
        model = Path(parent) / "model"
        with quiet():
            merge(run, config, MergeOptions(model, MERGED_DTYPE[options.file_type], "1000GB", options.base))
        step("merged", "base and adapter, for the converter")
        yield model


def _checked(file: Path, model: Path, config: Config, options: ExportOptions) -> float | None:
    """Compares the written file with the model that it is made of, where a package can load it."""
    if not can_load():
        warn("the file was not loaded to check it: pip install 'loraga[gguf]' brings what does that")
        return None
    dtype = MERGED_DTYPE[options.file_type] or config.model.dtype
    plain = config.model.model_copy(update={"path": str(model), "revision": None, "tokenizer": None, "dtype": dtype})
    loaded = load_model(plain.model_copy(update={"quantization": None, "double_quantization": False}), _cpu())
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    worst, same_tokens = check_file(file, loaded, tokenizer, options.file_type)
    step("checked", f"loaded by llama.cpp: log-probabilities of next tokens differ by at most {worst:.1g}")
    if not same_tokens:
        warn("llama.cpp reads a text as other tokens than transformers does: compare its answers before you use it")
    return worst


def _cpu() -> Any:
    import torch

    return torch.device("cpu")


def _write_adapter(run: RunFolder, config: Config, converter: Path, file: Path, file_type: str) -> None:
    """Converts the adapter.

    (llama.cpp multiplies ``B A`` by alpha / rank, and its converter reads ``lora_alpha`` alone: with rank-stabilized
    scaling, or with an alpha of its own for a layer, the adapter would be scaled wrongly. So it gets an alpha of 1.)
    """
    peft = check_convertible(run.path)
    tensors = with_alpha_1(peft, read_adapter(run.path))
    source = find_source(config.model)
    base = ["--base", source.path] if source.local else ["--base-model-id", source.path]
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=run.path) as parent:
        write_adapter(Path(parent), tensors, peft)
        run_converter(converter, [parent, *base, "--outfile", str(file), "--outtype", file_type])


def _modelfile(name: str, model: Path) -> str:
    """What Ollama reads: the file, the template and the tokens that end an answer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(model))
    lines = [f"FROM ./{name}"]
    if tokenizer.chat_template is None:  # with one, Ollama takes it from the file
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    lines += [f'PARAMETER stop "{token}"' for token in _ends(tokenizer, model)]
    return "\n".join(lines) + "\n"


def _ends(tokenizer: Any, model: Path) -> list[str]:
    """The tokens that end an answer, as texts."""
    file = model / "generation_config.json"
    stored = read_json(file).get("eos_token_id") if file.is_file() else None
    ids = stored if isinstance(stored, list) else [stored]
    named = [tokenizer.convert_ids_to_tokens(token) for token in [*ids, tokenizer.eos_token_id] if token is not None]
    return [token for token in dict.fromkeys(named) if isinstance(token, str)]


def _adapter_modelfile(name: str, run: RunFolder) -> str:
    base = shown_base(run.manifest)
    return f"# BASE.gguf is the base of this adapter as GGUF: {base}\nFROM ./BASE.gguf\nADAPTER ./{name}\n"
