"""Lets the micro-batches of a step take turns, so that each layer is loaded once and run for all of them.

Every micro-batch runs the model's own forward and backward in its own thread; one thread runs at a time. At a border
a thread says which layer it wants and passes the turn to the micro-batch that is farthest behind, the lowest index
first, so that every layer sees the micro-batches in their order, as in a plain loop over them.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence

import torch


class Abandoned(BaseException):
    """Raised in the other threads when one of them failed or the schedule was found inexact."""


class Baton:
    """The turn, and how far each micro-batch is along the order of borders, which is learned on the way.

    Args:
        random_states: what each micro-batch starts with.
        order: the borders as they are expected; micro-batches may leave some out, and add others.
    """

    def __init__(self, random_states: Sequence[torch.Tensor], order: Sequence[object] = ()):
        count = len(random_states)
        self._condition = threading.Condition()
        self._turn = 0
        self._order: list[object] = list(order)
        self._position = [-1] * count
        self._done = [False] * count
        self._random = list(random_states)
        self.failure: BaseException | None = None

    def start(self, index: int) -> None:
        """Wait for the first turn of a micro-batch."""
        with self._condition:
            self._await_turn(index)

    def reach(self, index: int, stop: object) -> None:
        """Micro-batch `index` wants to cross the border of `stop`; returns when it is its turn."""
        with self._condition:
            self._position[index] = self._locate(self._position[index] + 1, stop)
            self._random[index] = torch.get_rng_state()
            self._pass_on()
            self._await_turn(index)

    def finish(self, index: int, failure: BaseException | None) -> None:
        """Micro-batch `index` has ended; with a failure the others are abandoned."""
        with self._condition:
            self._done[index] = True
            self._random[index] = torch.get_rng_state()
            if failure is not None and self.failure is None and not isinstance(failure, Abandoned):
                self.failure = failure
            self._pass_on()

    def abandon(self, failure: BaseException) -> None:
        """The one who waits for the micro-batches was interrupted: they end at their next border."""
        with self._condition:
            self.failure = self.failure or failure
            self._condition.notify_all()

    def wait(self, indices: Sequence[int]) -> None:
        """Wait until micro-batches have ended. (An interrupted Thread.join takes its thread for ended: Python 3.11.)"""
        with self._condition:
            self._condition.wait_for(lambda: all(self._done[index] for index in indices))

    @property
    def random_states(self) -> list[torch.Tensor]:
        """The random state each micro-batch ended with."""
        return self._random

    @property
    def order(self) -> list[object]:
        """The borders, as they were expected and met."""
        return self._order

    def _locate(self, start: int, stop: object) -> int:
        for position in range(start, len(self._order)):
            if self._order[position] is stop:
                return position
        self._order.insert(start, stop)
        self._position = [p + 1 if p >= start else p for p in self._position]
        return start

    def _pass_on(self) -> None:
        waiting = [(p, i) for i, p in enumerate(self._position) if not self._done[i]]
        if waiting:
            self._turn = min(waiting)[1]
        self._condition.notify_all()

    def _await_turn(self, index: int) -> None:
        self._condition.wait_for(lambda: self._turn == index or self.failure is not None)
        if self.failure is not None:
            raise Abandoned
        torch.set_rng_state(self._random[index])


def run_together(baton: Baton, tasks: Sequence[Callable[[], None]]) -> None:
    """Run one task per micro-batch, each in its own thread, taking turns; raises the first failure."""

    def work(index: int, task: Callable[[], None]) -> None:
        failure: BaseException | None = None
        try:
            baton.start(index)
            task()
        except BaseException as error:  # noqa: BLE001  # raised again by run_together
            failure = error
        finally:
            baton.finish(index, failure)

    threads = []
    for index, task in enumerate(tasks):
        context = contextvars.copy_context()
        thread = threading.Thread(
            target=context.run, args=(work, index, task), name=f"openwafer-micro-batch-{index}", daemon=True
        )
        threads.append(thread)
    try:
        for thread in threads:
            thread.start()
        baton.wait(range(len(threads)))
    except BaseException as interruption:
        baton.abandon(interruption)
        baton.wait([index for index, thread in enumerate(threads) if thread.ident is not None])
        raise
    for thread in threads:
        thread.join()
    if baton.failure is not None:
        raise baton.failure
