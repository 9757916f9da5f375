"""Runs the micro-batches of a step: layer by layer together if that is exact, else one after another.

Together is tried first, from the random states the micro-batches will have in a plain loop (learned from the last
loop), and checked afterwards: random states that do not join, buffers or attributes that pass from one micro-batch to
the next, gradients in another order. If a check fails the step is put back and run as a plain loop, which is right
by construction. Much of what fails the first time (state that is made when it is first needed) does not fail again,
so this is tried a few times before it is given up.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch

from openwafer.base.errors import StoreError
from openwafer.pytorch import random_state
from openwafer.pytorch.engine import Engine, Inexact
from openwafer.pytorch.random_state import RandomState
from openwafer.pytorch.schedule import Baton, run_together
from openwafer.pytorch.visit import Autocast

GUESSES = 3


class Accumulator:
    """Runs micro-batches over one engine.

    Attributes:
        group: how many micro-batches run together; the groups run one after another. None: all of them.
        plain_order: why micro-batches run one after another; None: they need not.
        notes: what a person should read once.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.group: int | None = None
        self.plain_order: str | None = None
        self.notes: list[str] = []
        self._draws: list[int] | None = None
        self._failures = 0
        self._order: list[object] = []

    @property
    def order(self) -> str:
        """How micro-batches run, in a few words."""
        if self.plain_order is not None or self.group == 1:
            return "micro-batch-major"
        return "layer-major" if self.group is None else f"layer-major in groups of {self.group}"

    def run(self, count: int, task: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """Run `task`, forward and backward of a micro-batch, for each; returns the losses."""
        losses: list[torch.Tensor] = []

        def run(index: int) -> None:
            self.engine.local.index = index
            losses.append(task(index))

        alone = min(count, self.group or count) == 1
        if alone or self.plain_order is not None or not self._together(count, run, losses):
            self._in_turn(count, run)
        return losses

    def _in_turn(self, count: int, run: Callable[[int], None]) -> None:
        """The plain loop over micro-batches; learns how much randomness each one takes."""
        states = [torch.get_rng_state()]
        for index in range(count):
            run(index)
            self.engine.rest()
            states.append(torch.get_rng_state())
        if count > 1 and self.plain_order is None and not torch.equal(states[0], states[-1]):
            draws = [random_state.distance(a, b) for a, b in zip(states, states[1:], strict=False)]
            known = [d for d in draws if d is not None]
            self._draws = known if len(known) == count else None

    def _together(self, count: int, run: Callable[[int], None], losses: list[torch.Tensor]) -> bool:
        """Groups of micro-batches, layer by layer; False, all put back, if that differs from the plain loop."""
        engine = self.engine
        if any(page.grads.present for page in self.engine.streamer.pages if page.pending is None):
            return False
        if _thread_has_modes():
            return False
        random = RandomState(engine.generators)
        starts = [random.torch]
        for draws in (self._draws or [0] * count)[: count - 1]:
            starts.append(random_state.advance(starts[-1], draws))
        if len(starts) != count:
            starts = [random.torch] * count
        group = min(count, self.group or count)
        order = self._order or engine.expected_order
        ends: list[torch.Tensor] = []
        failed: str | None = None

        autocast = Autocast(engine.device_type)
        carried = engine.carry()

        def task(index: int, turn: int) -> None:
            engine.local.turn = turn
            with carried(), autocast() if autocast.enabled else nullcontext():
                run(index)
            engine.account()

        try:
            with engine.taking_turns():
                for first in range(0, count, group):
                    engine.baton = baton = Baton(starts[first : first + group], order)
                    members = range(first, min(count, first + group))
                    run_together(baton, [lambda i=i, turn=turn: task(i, turn) for turn, i in enumerate(members)])
                    engine.rest()
                    order = baton.order
                    ends += baton.random_states
            engine.require_unchanged()
            if any(not torch.equal(end, start) for end, start in zip(ends, starts[1:], strict=False)):
                failed = "the randomness of a micro-batch depends on its data"
            elif not random.others_are_now():
                failed = "random numbers of Python, numpy or the device are drawn"
        except Inexact as inexact:
            failed = inexact.reason
        except Exception as error:  # if it was not the order's fault, the plain loop raises it again
            if isinstance(error, StoreError):
                raise
            failed = f"one of them failed beside the others ({error!r})"
        if failed is None:
            self._failures = 0
            self._order = order
            engine.turns_ended(exact=True)
            torch.set_rng_state(ends[-1])
            return True
        losses.clear()
        engine.rest()
        engine.forget_gradients()
        engine.turns_ended(exact=False)
        random.restore()
        self._failures += 1
        if self._failures >= GUESSES:
            self.plain_order = failed
            self.notes.append(f"micro-batches run one after another, as in a plain loop, because {failed}")
        return False


def _thread_has_modes() -> bool:
    """Whether something of the caller acts on its thread, which other threads would not have."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return hooks is not None or bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())
