"""Damaged and hostile images: an error or a run that ends, never a crash of the fast engine."""

from __future__ import annotations

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openwafer.wafer import image_file
from openwafer.wafer.image_file import ImageError
from openwafer.wafer.sim import core
from openwafer.wafer.sim.engine import SimulationError
from tests.wafer.random_images import random_image

NUMBERS = (
    -1,
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    31,
    63,
    64,
    255,
    4096,
    49152,
    65535,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 40,
    -(1 << 40),
)


def leaves(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every place of a JSON value that holds a number: (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in items:
        if isinstance(own, int):
            found.append((value, key))
        leaves(own, found)
    return found


def damage(path: Path, r: random.Random) -> None:
    """One to three numbers of the file are others."""
    with np.load(path) as data:
        arrays = {name: data[name].copy() for name in data.files}
    text = json.loads(arrays["json"].tobytes().decode())
    places = leaves(text["image"], [])
    for _ in range(r.randint(1, 3)):
        name = r.choice([n for n in arrays if n != "json" and arrays[n].size] + ["json"] * 4)
        if name == "json":
            container, key = r.choice(places)
            container[key] = r.choice(NUMBERS)
        else:
            flat = arrays[name].reshape(-1)
            flat[r.randrange(flat.size)] = np.array(r.choice(NUMBERS)).astype(flat.dtype)
    arrays["json"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    made = io.BytesIO()
    np.savez(made, **arrays)  # pyright: ignore[reportArgumentType]
    path.write_bytes(made.getvalue())


@pytest.mark.parametrize("seed", range(60))
def test_damaged_images(tmp_path: Path, seed: int) -> None:
    r = random.Random(seed)
    image_file.save(random_image(seed), tmp_path)
    damage(tmp_path / "bin" / "image.npz", r)
    try:
        image = image_file.load(tmp_path)
    except ImageError:
        return
    if core.library() is None:
        pytest.skip("the fast engine was not built")
    engine = core.CoreEngine(image)
    width, height = image.size
    engine.send(0, 0, r.randrange(6), np.arange(5, dtype=np.uint32))
    if (image.program_of >= 0).all():
        engine.launch(0, 0, width, height, np.zeros((height, width), np.int64), np.array([1, 2]))
    with contextlib.suppress(SimulationError):
        engine.run_idle(500)
        engine.waits()
    engine.log()
    engine.close()


def test_a_whole_image_passes(tmp_path: Path) -> None:
    for seed in range(40):
        image_file.save(random_image(seed), tmp_path)
        assert image_file.load(tmp_path).size == random_image(seed).size
