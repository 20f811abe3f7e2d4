"""A program for torchrun: runs several command lines one after the other, without starting new processes for each.

Its only argument is a list of command lines in JSON. Before each, the main process prints ``MARK``.
"""

from __future__ import annotations

import json
import sys

from lora_ga_cli import distributed
from lora_ga_cli.cli.app import main

MARK = "---- the next command ----"

if __name__ == "__main__":
    for command in json.loads(sys.argv[1]):
        if distributed.is_main():
            print(MARK, flush=True)  # noqa: T201
        if code := main(command):
            sys.exit(code)
    distributed.leave()
