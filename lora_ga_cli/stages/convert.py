"""Writing an adapter that an earlier version of loraga saved in the difference form (`lora.convert`)."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from lora_ga_cli.errors import RunError
from lora_ga_cli.files import atomic_folder
from lora_ga_cli.lora.convert import Conversion, check_convertible, to_difference_form
from lora_ga_cli.lora.export import CONFIG_FILE, WEIGHTS_FILE
from lora_ga_cli.model.tensor_files import read_tensors
from lora_ga_cli.report.console import step

MIN_IMPROVEMENT = 2.0
"""How many times smaller the error in bfloat16 must become for the conversion to be worth it."""


def convert(source: Path, output: Path) -> Conversion:
    """Writes the adapter in ``source`` in the difference form to ``output``; both compute the same.

    The folder gets PEFT's two files. ``adapter_config.json`` is copied, since rank and s stay the same.

    Raises:
        RunError: the adapter cannot be converted or gains nothing from it, or ``output`` is not empty.
        EqualityError: the converted adapter would compute something else.
    """
    config = check_convertible(source)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output} exists and is not empty: give another --output, or remove it")
    conversion = to_difference_form(read_tensors(source / WEIGHTS_FILE), config)
    before, after = (f"{error:.2g} %" for error in (100 * conversion.error_before, 100 * conversion.error_after))
    if not conversion.error_before > MIN_IMPROVEMENT * conversion.error_after:
        raise RunError(
            f"{source}: a conversion would not reduce the error of the change in bfloat16 ({before} now, {after} "
            "converted), because the two halves of its factors do not nearly cancel or are in bfloat16 already; "
            "nothing was written. Use this adapter as it is"
        )
    with safe_open(source / WEIGHTS_FILE, framework="pt") as stored:
        metadata = stored.metadata() or {"format": "pt"}
    with atomic_folder(output) as temporary:
        save_file(conversion.tensors, temporary / WEIGHTS_FILE, metadata=metadata)
        shutil.copyfile(source / CONFIG_FILE, temporary / CONFIG_FILE)
    step(
        "converted",
        f"{output}: {conversion.layers} layers of rank {conversion.rank}, which compute the same as before "
        f"(relative difference {conversion.difference:.0e})",
    )
    step("converted", f"error of the change in bfloat16: {before} before, {after} after")
    return conversion
