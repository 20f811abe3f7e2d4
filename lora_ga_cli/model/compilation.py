"""Compiling a model's blocks with torch.compile."""

from __future__ import annotations

import os
import shutil

from torch import nn
from torch.utils._triton import has_triton

from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.blocks import blocks
from lora_ga_cli.model.unsupported import Unsupported

COMPILERS = ("g++", "clang++", "c++")


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compiles every block of a model, in place: parameters keep their names, and what is saved does not change.

    Blocks are alike, so what is compiled for one of them serves the others. Numbers of tokens are symbols in the
    compiled code, so that passes of other lengths need no compilation of their own. A block is compiled when it
    computes for the first time, and again after an adapter was put on it or it was switched between training and
    evaluation. Copies of the model are not compiled.

    Args:
        model: with its adapter and with all hooks; compiled code does not notice hooks that come later.
        backend: of torch.compile.

    Raises:
        Unsupported: there is no compiler for the model's device, or the model has no list of blocks.
    """
    device = next(model.parameters()).device.type
    if device == "cuda" and not has_triton():
        raise Unsupported("torch.compile needs Triton on a GPU (pip install triton), and a GPU from compute 7.0 on")
    if device == "cpu" and not any(map(shutil.which, [os.environ.get("CXX", COMPILERS[0]), *COMPILERS])):
        raise Unsupported("torch.compile needs a C++ compiler on a CPU, and none is installed")
    if device not in ("cpu", "cuda"):
        raise Unsupported(f"blocks are not compiled on devices of type {device}")
    try:
        found = blocks(model)
    except TargetError as error:
        raise Unsupported(str(error)) from None
    for block in found:
        block.compile(backend=backend, dynamic=True)
