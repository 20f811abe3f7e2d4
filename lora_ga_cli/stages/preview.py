"""Shows a few rows as the model sees them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.markup import escape

from lora_ga_cli.config.schema import Config
from lora_ga_cli.data.show import BEGIN_LEARNED, END_LEARNED, marked
from lora_ga_cli.report.console import out, say
from lora_ga_cli.stages.inputs import prepare_inputs


def preview(config: Config, rows: int = 4) -> list[dict[str, Any]]:
    """Prints the first training rows; text without loss is dimmed, or what has a loss is marked in a file or a pipe.

    Returns:
        Their lengths in tokens, their texts, and the parts of these with and without loss.
    """
    inputs = prepare_inputs(config)
    split, found = inputs.train, []
    styled = out.color_system is not None
    unit = "row" if split.read_rows in (None, len(split.rows)) else "example"
    for index in range(min(rows, len(split.rows))):
        row = split.rows[index]
        out.print()
        out.print(f"[bold]{unit} {index + 1}[/] · {row['length']} tokens", style="cyan")
        shown = split.form.show(row)
        parts = split.form.parts(row)
        if styled:
            out.print(shown)
        else:
            say(marked(parts))
        found.append({"tokens": row["length"], "text": shown.plain, "parts": [asdict(part) for part in parts]})
    out.print()
    for note in split.notes:
        out.print(f"[dim]{escape(note)}[/]")
    if styled:
        out.print("[dim]The model reads the dimmed text, but the loss does not count it.[/]")
    else:
        say(f"The loss counts the text between {BEGIN_LEARNED} and {END_LEARNED}. The model reads the rest too.")
    return found
