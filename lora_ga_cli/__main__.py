"""``python -m lora_ga_cli``, for torchrun and accelerate launch."""

from lora_ga_cli.cli.app import run

run()
