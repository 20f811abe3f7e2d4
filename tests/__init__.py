"""Tests run on the CPU, also on a machine with a GPU: libraries put things there unasked, like a base that transformers
quantizes, and then they do not meet what ``device=cpu`` put on the CPU."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before any test imports torch
