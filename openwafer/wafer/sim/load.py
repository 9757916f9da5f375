"""The engine for an image."""

from __future__ import annotations

from openwafer.wafer.image import Image
from openwafer.wafer.sim.engine import Engine
from openwafer.wafer.sim.trace import traced


def make_engine(image: Image) -> Engine:
    """An engine with the image loaded; it writes a trace where the environment asks for one (sim/trace.py)."""
    from openwafer.wafer.sim.reference import ReferenceEngine

    return traced(ReferenceEngine(image))
