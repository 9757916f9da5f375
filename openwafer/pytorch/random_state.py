"""Arithmetic on the state of torch's CPU generator, so that a micro-batch can start where the one before it will end.

torch keeps a Mersenne Twister in the layout of its legacy generator: seed (8 bytes), left (4), seeded (4), next (8),
624 words of 8 bytes, then cached normals. Source: ATen/CPUGeneratorImpl.cpp; held against torch itself in the tests.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

WORDS = 624
_KEY = slice(24, 24 + 8 * WORDS)
DRAWS_MOST = 1 << 32


def distance(start: torch.Tensor, end: torch.Tensor) -> int | None:
    """How many 32-bit draws lead from one state to another; None if more than `DRAWS_MOST` or unrelated."""
    if torch.equal(start, end):
        return 0
    if not torch.equal(start[:8], end[:8]):  # another seed was set
        return None
    twister, position = _twister(start)
    key, end_position = _key(end), _position(end)
    draws = 0
    while not np.array_equal(twister.state["state"]["key"], key):
        step = WORDS - position + 1
        twister.random_raw(step, output=False)
        draws += step
        position = 1
        if draws > DRAWS_MOST:
            return None
    return draws + end_position - position


def advance(state: torch.Tensor, draws: int) -> torch.Tensor:
    """The state after `draws` 32-bit draws."""
    if draws == 0:
        return state.clone()
    twister, _ = _twister(state)
    twister.random_raw(draws, output=False)
    inner = twister.state["state"]
    raw = state.numpy().copy()
    raw[_KEY] = inner["key"].astype(np.uint64).view(np.uint8)
    raw[8:12] = np.array([WORDS + 1 - inner["pos"]], dtype=np.int32).view(np.uint8)
    raw[16:24] = np.array([inner["pos"]], dtype=np.uint64).view(np.uint8)
    return torch.from_numpy(raw)


def _key(state: torch.Tensor) -> np.ndarray:
    return state.numpy()[_KEY].copy().view(np.uint64).astype(np.uint32)


def _position(state: torch.Tensor) -> int:
    raw = state.numpy()
    left = int(raw[8:12].copy().view(np.int32)[0])
    following = int(raw[16:24].copy().view(np.uint64)[0])
    return WORDS if left == 1 else following


def _twister(state: torch.Tensor) -> tuple[np.random.MT19937, int]:
    twister = np.random.MT19937()
    position = _position(state)
    twister.state = {"bit_generator": "MT19937", "state": {"key": _key(state), "pos": position}}
    return twister, position


class RandomState:
    """Where the generators of Python, numpy and torch are now, and those of a device if it has some."""

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self.generators = generators
        self.devices = [generator.get_state() for generator in generators]
        self.torch = torch.get_rng_state()
        self.python = random.getstate()
        self.numpy = np.random.get_state()

    def is_now(self) -> bool:
        """Whether nothing has been drawn since."""
        return torch.equal(self.torch, torch.get_rng_state()) and self.others_are_now()

    def others_are_now(self) -> bool:
        """Whether nothing has been drawn since from the generators of Python, numpy and the device."""
        if any(not torch.equal(g.get_state(), s) for g, s in zip(self.generators, self.devices, strict=True)):
            return False
        _, key, *rest = self.numpy
        _, now_key, *now_rest = np.random.get_state()
        return self.python == random.getstate() and rest == now_rest and np.array_equal(key, now_key)

    def restore(self) -> None:
        """Go back there."""
        for generator, state in zip(self.generators, self.devices, strict=True):
            generator.set_state(state)
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        np.random.set_state(self.numpy)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Go back there for a while."""
        later = RandomState(self.generators)
        self.restore()
        try:
            yield
        finally:
            later.restore()


def save(generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """The random state of Python, numpy and torch, and of a device's generators, as JSON."""
    version, words, gauss = random.getstate()
    kind, key, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(key).tolist(), position, has_gauss, cached],
        "torch": bytes(torch.get_rng_state().numpy()).hex(),
        "devices": [bytes(generator.get_state().numpy()).hex() for generator in generators],
    }


def restore(saved: dict[str, Any], generators: Sequence[torch.Generator] = ()) -> None:
    """Put back what `save` gave; generators of a device that was not there then stay where they are."""
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    kind, key, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_from_hex(saved["torch"]))
    for generator, state in zip(generators, saved.get("devices", ()), strict=False):
        generator.set_state(_from_hex(state))


def _from_hex(state: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
