"""Prints what a run will take before it takes it; the numbers are the engine's own forecast."""

from collections.abc import Sequence
from typing import Protocol

from rich import box
from rich.console import Console
from rich.table import Table


class Forecast(Protocol):
    """What `Job.forecast` returns, as far as printing goes."""

    def rows(self) -> Sequence[tuple[str, str]]:
        """Pairs of what and how much."""
        ...


def print_forecast(forecast: Forecast, console: Console, title: str = "What this run will take") -> None:
    """A table of two columns; plain lines where the console is no terminal."""
    rows = forecast.rows()
    if not console.is_terminal:
        width = max((len(label) for label, _text in rows), default=0)
        lines = [title, *(f"  {label:<{width}}  {text}" for label, text in rows)]
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    for label, text in rows:
        table.add_row(label, text)
    console.print(table)
