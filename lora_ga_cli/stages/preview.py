"""Shows a few rows as the model sees them."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from lora_ga_cli.config.schema import Config
from lora_ga_cli.report.console import out
from lora_ga_cli.stages.inputs import prepare_inputs


def preview(config: Config, rows: int = 4) -> list[dict[str, Any]]:
    """Prints the first training rows; text without loss is dimmed. Returns their texts and lengths in tokens."""
    inputs = prepare_inputs(config)
    split, found = inputs.train, []
    unit = "row" if split.read_rows in (None, len(split.rows)) else "example"
    for index in range(min(rows, len(split.rows))):
        row = split.rows[index]
        out.print()
        out.print(f"[bold]{unit} {index + 1}[/] · {row['length']} tokens", style="cyan")
        shown = split.form.show(row)
        out.print(shown)
        found.append({"tokens": row["length"], "text": shown.plain})
    out.print()
    for note in split.notes:
        out.print(f"[dim]{escape(note)}[/]")
    out.print("[dim]The model reads the dimmed text, but the loss does not count it.[/]")
    return found
