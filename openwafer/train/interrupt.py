"""Ctrl-C and SIGTERM ask the run to stop after the step in flight; a second one stops it at once."""

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """While it is entered, the first SIGINT or SIGTERM is only noted; the second does what it always did.

    Args:
        on_request: called with the signal's name when the first one comes.
    """

    def __init__(self, on_request: Callable[[str], None] = lambda name: None) -> None:
        self.requested: signal.Signals | None = None
        self._on_request = on_request
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        self.requested = signal.Signals(number)
        self._on_request(self.requested.name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
