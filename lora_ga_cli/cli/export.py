"""``loraga export``"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ga_cli.cli.common import Code, Debug
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.paths import naming
from lora_ga_cli.stages.file_types import FileType


class Format(StrEnum):
    """What is written."""

    gguf = "gguf"
    gguf_lora = "gguf-lora"


@with_json
def command(
    run: Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="A finished run.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="gguf: base and adapter in one file. gguf-lora: the LoRA adapter alone.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder to write (default: RUN_FOLDER/FORMAT).")
    ] = None,
    file_type: Annotated[FileType, typer.Option("--type", help="Type of the written weights.")] = FileType.f16,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", envvar="LORAGA_LLAMA_CPP", help="Folder of llama.cpp's source (its converters)."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The base model, if it is now in another place.")] = None,
    code: Code = None,
    debug: Debug = False,
) -> dict[str, Any]:
    """Write a run as GGUF for llama.cpp and Ollama, by llama.cpp's own converter, with a Modelfile beside it.

    With `pip install 'loraga[gguf]'`, llama.cpp loads the file of a model, and its answers are compared.

    Example: loraga export runs/mine --format gguf --llama-cpp ../llama.cpp
    """
    from lora_ga_cli.stages.export import ExportOptions, export
    from lora_ga_cli.stages.trained import config_of, folder_of

    folder = folder_of(run)
    chosen = ExportOptions(form is Format.gguf_lora, output, file_type, llama_cpp, base)
    with naming({"--output": output or folder.path}):
        return export(folder, config_of(folder, (), base), chosen)
