"""A part of the jobs of a sweep or of a table, which one of several machines does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lora_ga_cli.config.overrides import COMMAND_LINE
from lora_ga_cli.errors import Fault, InvalidInput


@dataclass(frozen=True)
class Shard:
    """A part of a sweep or a table: each ``count``-th of its jobs, from job ``number`` on, where 1 is the first."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The part that ``2/4`` names.

        Raises:
            InvalidInput: this is no part.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            hint = "1/4, 2/4, 3/4 and 4/4 are the four parts of four"
            raise InvalidInput([Fault(COMMAND_LINE, f"--shard {text} names no part", hint)])
        return cls(int(found[1]), int(found[2]))

    def has(self, job: int) -> bool:
        """Whether a job belongs to this part.

        Args:
            job: its number, from 0.
        """
        return job % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
