"""``loraga export``"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ga_cli.cli.common import Code, Debug
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.paths import naming
from lora_ga_cli.stages.file_types import FileType

if TYPE_CHECKING:
    from lora_ga_cli.errors import Fault


class Format(StrEnum):
    """What is written."""

    gguf = "gguf"
    gguf_lora = "gguf-lora"
    peft = "peft"


@with_json
def command(
    run: Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="A finished run.", show_default=False)],
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

    GGUF is written by llama.cpp's own converter. With `pip install 'loraga[gguf]'`, llama.cpp loads the file of a
    model, and its answers are compared.

    Example: loraga export runs/mine --format gguf --llama-cpp ../llama.cpp
    """
    from lora_ga_cli.errors import InvalidInput
    from lora_ga_cli.stages.trained import config_of, folder_of

    of_gguf = {"--type": file_type, "--llama-cpp": llama_cpp if form is Format.peft else None}
    if faults := _option_faults(form, rank, {"--rows": rows, "--all": every_layer or None}, of_gguf):
        raise InvalidInput(faults)
    folder = folder_of(run)
    config = config_of(folder, (), base)
    with naming({"--output": output or folder.path}):
        if rank is not None:
            from lora_ga_cli.stages.cut import CutOptions, cut_run

            return cut_run(folder, config, CutOptions(rank, rows, output, every_layer))
        from lora_ga_cli.stages.export import ExportOptions, export

        chosen = ExportOptions(form is Format.gguf_lora, output, file_type or FileType.f16, llama_cpp, base)
        return export(folder, config, chosen)


def _option_faults(
    form: Format | None, rank: int | None, of_cut: Mapping[str, Any], of_gguf: Mapping[str, Any]
) -> list[Fault]:
    """Options that do not go together.

    Args:
        of_cut: what goes with ``--rank``, by name; None where it is not given.
        of_gguf: what goes with GGUF.
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
    wrong = of_gguf if rank is not None else of_cut
    other = "--rank" if rank is not None else f"--format {form or Format.gguf}"
    faults += [Fault("command line", f"{name} does not go with {other}") for name, value in wrong.items() if value]
    return faults
