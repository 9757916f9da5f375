"""The engine for an image."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from openwafer.base.errors import OpenwaferError
from openwafer.wafer.image import Image
from openwafer.wafer.sim.engine import Engine
from openwafer.wafer.sim.trace import traced

_LOG = logging.getLogger(__name__)


def make_engine(image: Image, name: str | None = None, trace: Path | None = None) -> Engine:
    """An engine with the image loaded.

    Args:
        name: "core" (C), "reference" (plain Python), or None: OPENWAFER_ENGINE, else the core where it was built
        trace: record one into this file; None: as OPENWAFER_TRACE says
    """
    return traced(_engine(image, name), trace)


def _engine(image: Image, name: str | None) -> Engine:
    wanted = name or os.environ.get("OPENWAFER_ENGINE") or "auto"
    if wanted not in ("auto", "core", "reference"):
        raise OpenwaferError(f'there is no engine "{wanted}"; there are core and reference')
    if wanted != "reference":
        from openwafer.wafer.sim import core

        if core.library() is not None:
            return core.CoreEngine(image)
        if wanted == "core":
            raise OpenwaferError("the fast engine was not built: install openwafer where a C compiler is found")
        _LOG.warning("the fast engine was not built (no C compiler at install): programs run about 100 times slower")
    from openwafer.wafer.sim.reference import ReferenceEngine

    return ReferenceEngine(image)
