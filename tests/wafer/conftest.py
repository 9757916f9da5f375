"""Every program of these tests runs on both engines at once, which must agree in each value and cycle."""

import os
from pathlib import Path

import pytest

from openwafer.wafer.image import Image
from openwafer.wafer.runtime import sdk_runtime
from openwafer.wafer.sim import core
from openwafer.wafer.sim.engine import Engine
from tests.wafer.lockstep import LockstepEngine


@pytest.fixture(autouse=True)
def both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """SdkRuntime's engine; where the core was not built, the reference alone."""
    ordinary = sdk_runtime.make_engine

    def make_engine(image: Image, name: str | None = None, trace: Path | None = None) -> Engine:
        if trace is not None or "OPENWAFER_TRACE" in os.environ or "OPENWAFER_ENGINE" in os.environ:
            return ordinary(image, name, trace)
        return LockstepEngine(image)

    if core.library() is not None:
        monkeypatch.setattr(sdk_runtime, "make_engine", make_engine)
