"""Pictures of what a run wrote about itself; reads event files only."""

from openwafer.view.curves import draw_curves, run_view

__all__ = ["draw_curves", "run_view"]
