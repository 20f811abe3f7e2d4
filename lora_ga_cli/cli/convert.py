"""``loraga convert``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lora_ga_cli.cli.arguments import Debug
from lora_ga_cli.cli.output import with_json
from lora_ga_cli.cli.paths import naming


@with_json
def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="An adapter or a run of an earlier version.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write the converted adapter to.")],
    debug: Debug = False,
) -> Any:
    """Convert a LoRA-GA adapter of an earlier version, so that it stays exact in bfloat16.

    The converted adapter has the same rank and computes the same. PEFT and vLLM load it as they did before.

    Example: loraga convert runs/old-run --output my-adapter
    """
    from lora_ga_cli.stages.convert import convert

    with naming({"--output": output.expanduser()}):
        done = convert(folder.expanduser(), output.expanduser())
    values = ("layers", "rank", "difference", "error_before", "error_after")
    return {"folder": output, **{name: getattr(done, name) for name in values}}
