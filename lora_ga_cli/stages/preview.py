"""Shows a few rows as the model sees them."""

from __future__ import annotations

from rich.markup import escape

from lora_ga_cli.config.schema import Config
from lora_ga_cli.report.console import out
from lora_ga_cli.stages.inputs import prepare_inputs


def preview(config: Config, rows: int = 4) -> None:
    """Prints the first training rows; text without loss is dimmed."""
    inputs = prepare_inputs(config)
    split = inputs.train
    unit = "row" if split.read_rows in (None, len(split.rows)) else "example"
    for index in range(min(rows, len(split.rows))):
        row = split.rows[index]
        out.print()
        out.print(f"[bold]{unit} {index + 1}[/] · {row['length']} tokens", style="cyan")
        out.print(split.form.show(row))
    out.print()
    for note in split.notes:
        out.print(f"[dim]{escape(note)}[/]")
    out.print("[dim]The model reads the dimmed text, but the loss does not count it.[/]")
