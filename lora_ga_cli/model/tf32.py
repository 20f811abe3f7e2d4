"""Products of float32 matrices in TF32 on GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Lets GPUs multiply float32 matrices in TF32, which keeps ten bits of each entry, inside the ``with`` block.

    (torch has a second set of switches, ``fp32_precision``, and refuses to read one after the other was set. This is
    the older one, which every version has; it has no effect on a CPU.)

    Args:
        allowed: False changes nothing.
    """
    if not allowed:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def tf32_allowed() -> bool:
    """Whether a GPU may multiply float32 matrices in TF32, however that was set."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # torch raises it where the newer setting was used
        return bool(matmul.fp32_precision == "tf32")
