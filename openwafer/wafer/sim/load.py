"""The engine for an image."""

from __future__ import annotations

from openwafer.wafer.image import Image
from openwafer.wafer.sim.engine import Engine


def make_engine(image: Image) -> Engine:
    """An engine with the image loaded."""
    from openwafer.wafer.sim.reference import ReferenceEngine

    return ReferenceEngine(image)
