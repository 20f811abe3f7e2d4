"""The types that weights in a GGUF file can have. Imported by the command line, so it imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum


class FileType(StrEnum):
    """The type of the written weights."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"


MERGED_DTYPE = {FileType.f32: "float32", FileType.f16: "float16", FileType.bf16: "bfloat16", FileType.q8_0: None}
"""The type of the model that is converted, by the type of the file's weights; None for the base's."""
TOLERANCE = {FileType.f32: 2e-2, FileType.bf16: 0.5, FileType.f16: 0.1, FileType.q8_0: 1.0}
"""The largest difference of a next token's log-probability (nats) that is allowed, by the type of the file's weights.
llama.cpp rounds what it computes with too."""
