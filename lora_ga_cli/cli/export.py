"""``loraga export``"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Code, Debug, given_options
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.paths import naming
from lora_ga_cli.stages.file_types import FileType

if TYPE_CHECKING:
    from lora_ga_cli.errors import Fault


OF_CUT = ("--rows", "--all")
"""What goes with ``--rank`` alone."""
OF_GGUF = ("--type", "--llama-cpp")


class Format(StrEnum):
    """What is written."""

    gguf = "gguf"
    gguf_lora = "gguf-lora"
    peft = "peft"


@with_json
def command(
    context: typer.Context,
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN_FOLDER",
            help="A finished run; with --rank also a folder with a LoRA adapter of any program.",
            show_default=False,
        ),
    ],
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="gguf: base and adapter in one file. gguf-lora: the LoRA adapter alone. peft: the adapter at a lower "
            "--rank, as PEFT loads it.",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="Cut the adapter to this rank (--format peft).")] = None,
    rows: Annotated[
        int | None,
        typer.Option("--rows", help="Cut what layers add for so many training rows, and not their weights alone."),
    ] = None,
    every_layer: Annotated[bool, typer.Option("--all", help="Show the error of each layer (with --rank).")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Folder to write (default: RUN_FOLDER/FORMAT, or RUN_FOLDER/peft-rRANK)."),
    ] = None,
    file_type: Annotated[
        FileType | None, typer.Option("--type", help="Type of the weights in GGUF (default: f16).", show_default=False)
    ] = None,
    llama_cpp: Annotated[
        Path | None,
        typer.Option("--llama-cpp", envvar="LORAGA_LLAMA_CPP", help="Folder of llama.cpp's source (its converters)."),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", help="The base model, if it is now in another place.")] = None,
    code: Code = None,
    debug: Debug = False,
) -> dict[str, Any]:
    """Write a run as GGUF for llama.cpp and Ollama, with a Modelfile beside it; or its adapter at a lower rank.

    GGUF is written by llama.cpp's own converter. With `pip install 'loraga\\[gguf]'`, llama.cpp loads the file of a
    model, and its answers are compared.

    Example: loraga export runs/mine --format gguf --llama-cpp ../llama.cpp
    """
    from lora_ga_cli.errors import InvalidInput
    from lora_ga_cli.stages.trained import config_of, folder_of

    if faults := _option_faults(form, rank, given_options(context)):
        raise InvalidInput(faults)
    folder = folder_of(run)
    with naming({"--output": output or folder.path}):
        if rank is not None:
            from lora_ga_cli.stages.cut import CutOptions, cut_adapter

            return cut_adapter(folder.path, CutOptions(rank, rows, output, every_layer, base))
        from lora_ga_cli.stages.export import ExportOptions, export

        chosen = ExportOptions(form is Format.gguf_lora, output, file_type or FileType.f16, llama_cpp, base)
        return export(folder, config_of(folder, (), base), chosen)


def _option_faults(form: Format | None, rank: int | None, given: Collection[str]) -> list[Fault]:
    """Options that do not go together.

    Args:
        given: the options that stand on the command line. The environment variable of ``--llama-cpp`` is none of them.
    """
    from lora_ga_cli.errors import Fault

    faults = []
    if form is None and rank is None:
        faults.append(
            Fault("command line", "what should be written?", "--format gguf, --format gguf-lora, or --rank R")
        )
    if form is Format.peft and rank is None:
        what = "--format peft needs --rank: the run's folder is the adapter at its own rank already"
        faults.append(Fault("command line", what, "--rank R"))
    if form not in (None, Format.peft) and rank is not None:
        what = f"--rank {rank} does not go with --format {form}"
        faults.append(Fault("command line", what, "--format peft, which --rank alone means too"))
    wrong = OF_GGUF if rank is not None or form is Format.peft else OF_CUT
    other = "--rank" if wrong is OF_GGUF else f"--format {form or Format.gguf}"
    named = [option for option in wrong if option in given]
    return faults + [Fault("command line", f"{option} does not go with {other}", "leave it out") for option in named]
