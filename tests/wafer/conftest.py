"""Every program of these tests runs on both engines at once, which must agree in each value and cycle."""

import pytest

from openwafer.wafer.runtime import sdk_runtime
from openwafer.wafer.sim import core
from tests.wafer.lockstep import LockstepEngine


@pytest.fixture(autouse=True)
def both_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """SdkRuntime's engine; where the core was not built, the reference alone."""
    if core.library() is not None:
        monkeypatch.setattr(sdk_runtime, "make_engine", LockstepEngine)
