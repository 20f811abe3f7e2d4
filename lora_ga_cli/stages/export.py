"""Writes a run's result in the GGUF format of llama.cpp and Ollama: base and adapter in one file, or the adapter."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import Fault, InvalidInput, RunError
from lora_ga_cli.files import atomic_folder, file_sizes
from lora_ga_cli.json_files import read_json
from lora_ga_cli.lora.convert import check_convertible
from lora_ga_cli.lora.export import WEIGHTS_FILE, adapts_parameters, write_adapter
from lora_ga_cli.lora.layers import FACTOR_A, FACTOR_B
from lora_ga_cli.lora.links import read_adapter, with_alpha_1
from lora_ga_cli.methods.base import method_of
from lora_ga_cli.model.generation import base_ends
from lora_ga_cli.model.loading import find_source, load_config, load_model, load_tokenizer
from lora_ga_cli.model.tensor_files import read_tensors
from lora_ga_cli.report.console import quiet, size, step, warn
from lora_ga_cli.report.front_matter import shown_base
from lora_ga_cli.stages.file_types import MERGED_DTYPE, FileType
from lora_ga_cli.stages.llama_cpp import (
    ADAPTER_CONVERTER,
    MODEL_CONVERTER,
    can_load,
    check_file,
    find_converter,
    run_converter,
)
from lora_ga_cli.stages.merge import MergeOptions, merge
from lora_ga_cli.stages.saved_tokenizer import with_saved_tokenizer
from lora_ga_cli.training.run_files import check_result
from lora_ga_cli.training.run_folder import RunFolder

MODELFILE = "Modelfile"


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
    file_type: FileType = FileType.f16
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
    if options.adapter:
        check_result(run)
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
            text, difference = _adapter_modelfile(name, run, config), None
        else:
            with _merged(run, config, options, folder.parent) as model:
                given = [str(model), "--outfile", str(temporary / name), "--outtype", options.file_type]
                run_converter(converter, given)
                difference = _checked(temporary / name, model, config, options)
                text = _modelfile(name, model, run)
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
    if adapts_parameters(run.path):
        what = "its adapter changes parameters of experts, and a LoRA adapter in GGUF changes linear layers only"
        yield Fault(str(run.path), what, f"loraga merge makes a plain model of it; {whole}")
        return
    try:
        check_convertible(run.path)
    except RunError:
        yield Fault(str(run.path), f"holds {output.label}, and GGUF has LoRA adapters only", whole)
        return
    others = [name for name in read_tensors(run.path / WEIGHTS_FILE) if not name.endswith((FACTOR_A, FACTOR_B))]
    if others:
        yield Fault(str(run.path), f"its adapter has more than LoRA's factors ({others[0]}), and GGUF has not", whole)


@contextlib.contextmanager
def _merged(run: RunFolder, config: Config, options: ExportOptions, place: Path) -> Iterator[Path]:
    """A folder with the merged model, inside a place that has room for it; it is removed in the end."""
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=place) as parent:
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


def _write_adapter(run: RunFolder, config: Config, converter: Path, file: Path, file_type: FileType) -> None:
    """Converts the adapter.

    (llama.cpp multiplies ``B A`` by alpha / rank, and its converter reads ``lora_alpha`` alone: with rank-stabilized
    scaling, or with an alpha of its own for a layer, the adapter would be scaled wrongly. So it gets an alpha of 1.)
    """
    peft = check_convertible(run.path)
    tensors = with_alpha_1(peft, read_adapter(run.path))
    source = find_source(config.model)
    base = ["--base", source.path] if source.local else ["--base-model-id", source.path]
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=file.parent.parent) as parent:
        write_adapter(Path(parent), tensors, peft)
        run_converter(converter, [parent, *base, "--outfile", str(file), "--outtype", file_type])


def _modelfile(name: str, model: Path, run: RunFolder) -> str:
    """What Ollama reads: the file, the template and the tokens that end an answer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(model))
    lines = [f"FROM ./{name}"]
    if tokenizer.chat_template is None:  # with one, Ollama takes it from the file
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    file = model / "generation_config.json"
    stored = read_json(file).get("eos_token_id") if file.is_file() else None
    ids = stored if isinstance(stored, list) else [stored]
    return "\n".join([*lines, *_stops(tokenizer, ids, run)]) + "\n"


def _stops(tokenizer: Any, ids: Sequence[int | None], run: RunFolder) -> list[str]:
    """The lines of a Modelfile for all that ends an answer: tokens, and a text that is no token.

    Args:
        ids: the tokens at which the model stops, beside its tokenizer's end.
    """
    named = [tokenizer.convert_ids_to_tokens(token) for token in [*ids, tokenizer.eos_token_id] if token is not None]
    texts = [token for token in named if isinstance(token, str)]
    if text := (run.manifest.get("ends") or {}).get("text"):
        texts.append(text)
    return [f"PARAMETER stop {_quoted(text)}" for text in dict.fromkeys(texts)]


def _quoted(text: str) -> str:
    """A text in a Modelfile, which knows no escapes: one that has quotes, or is of several lines, stands in three."""
    quotes = '"""' if '"' in text or "\n" in text else '"'
    return f"{quotes}{text}{quotes}"


def _adapter_modelfile(name: str, run: RunFolder, config: Config) -> str:
    """As `_modelfile`, with the adapter. The base does not stop by itself at what the run's answers end with."""
    config = with_saved_tokenizer(config, run.path)
    source = find_source(config.model)
    ids = base_ends(source.path, load_config(config.model), source.arguments)
    ids += (run.manifest.get("ends") or {}).get("tokens", [])
    base = shown_base(run.manifest)
    lines = [f"# BASE.gguf is the base of this adapter as GGUF: {base}", "FROM ./BASE.gguf", f"ADAPTER ./{name}"]
    return "\n".join([*lines, *_stops(load_tokenizer(config.model), ids, run)]) + "\n"
