"""llama.cpp's own converters, which are programs of its source, and what loads the files that they write."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_ga_cli.errors import EqualityError, Fault, InvalidInput, UserError
from lora_ga_cli.model.probe import PROBE_TEXTS
from lora_ga_cli.stages.file_types import TOLERANCE, FileType

MODEL_CONVERTER = "convert_hf_to_gguf.py"
ADAPTER_CONVERTER = "convert_lora_to_gguf.py"
VARIABLE = "LORAGA_LLAMA_CPP"
LIKELY = 5
"""How many of the likeliest next tokens are compared."""


def find_converter(folder: Path | None, name: str) -> Path:
    """A converter in a copy of llama.cpp's source.

    Raises:
        InvalidInput: no folder is given, or it has no such file; says where to get one.
    """
    hint = (
        "git clone https://github.com/ggml-org/llama.cpp, or unpack what `pip download --no-deps --no-binary :all: "
        "llama-cpp-python` brings, in which it is vendor/llama.cpp"
    )
    if folder is None:
        what = f"the converter {name} is part of llama.cpp's source, and no folder of it is named"
        raise InvalidInput([Fault("--llama-cpp", what, f"--llama-cpp FOLDER, or ${VARIABLE}; {hint}")])
    if not (folder / name).is_file():
        raise InvalidInput([Fault("--llama-cpp", f"{folder} has no {name}, so it is not llama.cpp's source", hint)])
    return folder / name


def run_converter(converter: Path, arguments: Sequence[str]) -> None:
    """Runs a converter in a process of its own.

    Raises:
        UserError: it failed; with what it said last.
    """
    done = subprocess.run([sys.executable, str(converter), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        told = [line for line in lines if "rror" in line]
        said = (told or lines or ["nothing"])[-1]
        raise UserError(
            f"llama.cpp's {converter.name} failed, and said: {said} (the model may be of a family, or its tokenizer of "
            "a kind, that this version of llama.cpp does not know)"
        )


def can_load() -> bool:
    """Whether a package is installed that loads GGUF files."""
    return importlib.util.find_spec("xllamacpp") is not None


@torch.no_grad()
def check_file(
    file: Path, model: nn.Module, tokenizer: Any, file_type: FileType, *, adapter: Path | None = None
) -> tuple[float, bool]:
    """Loads a GGUF file with llama.cpp on the CPU, and compares what comes next after two texts.

    Args:
        model: what was converted, in transformers.
        adapter: a GGUF file of an adapter, which is put on the model in ``file``.

    Returns:
        The largest difference of the log-probabilities of the likeliest next tokens, and whether llama.cpp reads the
        texts as the same tokens as the tokenizer.

    Raises:
        EqualityError: they differ by more than rounding.
    """
    server = _server(file, adapter)
    worst, same_tokens = 0.0, True
    device = next(model.parameters()).device
    for text in PROBE_TEXTS:
        ids = tokenizer(text)["input_ids"]
        logits: Tensor = model(input_ids=torch.tensor([ids], device=device)).logits[0, -1].float().cpu()
        expected = torch.log_softmax(logits, dim=-1)
        found = _next(server, ids, len(expected))
        for token in expected.topk(LIKELY).indices.tolist():
            worst = max(worst, abs(found.get(token, -math.inf) - float(expected[token])))
        as_text = _next(server, text, len(expected))
        same_tokens = same_tokens and all(abs(as_text.get(token, 0) - value) < 1e-4 for token, value in found.items())
    if not worst <= TOLERANCE[file_type]:
        raise EqualityError(
            f"{file.name}, loaded by llama.cpp, does not compute what the model does: the log-probability of a next "
            f"token differs by {worst:.2g} (allowed in {file_type}: {TOLERANCE[file_type]:g})"
        )
    return worst, same_tokens


def _server(file: Path, adapter: Path | None) -> Any:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(file)
    options.n_ctx, options.n_parallel, options.n_gpu_layers, options.warmup, options.verbosity = 256, 1, 0, False, -1
    if adapter is not None:
        placed = xllamacpp.CommonAdapterLoraInfo()
        placed.path, placed.scale = str(adapter), 1.0
        options.lora_adapters = [placed]
    return xllamacpp.Server(options)


def _next(server: Any, prompt: str | list[int], count: int) -> dict[int, float]:
    """Log-probabilities of the next token, the likeliest ones.

    Args:
        prompt: a text, or tokens.
        count: of tokens in the vocabulary.
    """
    request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": min(count, 64), "cache_prompt": False}
    answer = server.handle_completions(request)
    try:
        likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    except (KeyError, IndexError, TypeError):
        raise UserError(f"llama.cpp loaded the file, and gave no answer to compare: {answer}") from None
    return {int(item["id"]): float(item["logprob"]) for item in likely}
