"""The C core against the reference on random images: every value, every cycle, every error."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwafer.wafer.sim import core
from openwafer.wafer.sim.engine import SimulationError
from tests.wafer.lockstep import LockstepEngine
from tests.wafer.random_images import random_image

needs_core = pytest.mark.skipif(core.library() is None, reason="the fast engine was not built")


def agree(seed: int) -> None:
    """Launches, sends and runs of one random image on both engines."""
    image = random_image(seed)
    r = random.Random(~seed)
    engine = LockstepEngine(image, watched=seed % 4 == 0)
    width, height = image.size
    try:
        for _ in range(3):
            functions = np.array([[r.randrange(6) if p >= 0 else 0 for p in row] for row in image.program_of])
            if r.random() < 0.7 and (image.program_of >= 0).all():
                engine.launch(0, 0, width, height, functions, np.array([r.randrange(99) for _ in range(2)]))
            if r.random() < 0.5:
                words = np.array([r.randrange(1 << 32) for _ in range(r.randint(1, 20))], np.uint32)
                engine.send(r.randrange(width), r.randrange(height), r.randrange(6), words, r.random() < 0.3)
            how = r.random()
            if how < 0.5:
                engine.run_commands(0, 0, r.randint(1, width), r.randint(1, height), r.randint(1, 900))
            elif how < 0.8:
                engine.run_idle(r.randint(1, 600))
            else:
                engine.run_received(0, 0, 1, 1, r.randrange(6), r.randint(1, 5), 300)
    except SimulationError:
        pass
    finally:
        engine.close()


@needs_core
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 40))
def test_engines_agree(seed: int) -> None:
    agree(seed)
