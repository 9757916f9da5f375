"""The engine for an image."""

from __future__ import annotations

from pathlib import Path

from openwafer.wafer.image import Image
from openwafer.wafer.sim.engine import Engine
from openwafer.wafer.sim.trace import traced


def make_engine(image: Image, trace: Path | None = None) -> Engine:
    """An engine with the image loaded; it writes a trace if told, or where the environment asks for one."""
    from openwafer.wafer.sim.reference import ReferenceEngine

    return traced(ReferenceEngine(image), trace)
