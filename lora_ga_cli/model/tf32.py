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


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Has GPUs multiply float32 matrices in float32 inside the ``with`` block, however TF32 was allowed before: by
    `tf32_products`, by torch's own switches, or by the variable ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``."""
    matmul = torch.backends.cuda.matmul
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # as in `tf32_allowed`
        newer = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)


def tf32_allowed() -> bool:
    """Whether a GPU may multiply float32 matrices in TF32, however that was set."""
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # torch raises it where the newer setting was used
        return bool(matmul.fp32_precision == "tf32")
