"""What a watched PE of the reference engine does, as events: compares its threads before and after each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from openwafer.wafer.image import Location, Program
from openwafer.wafer.isa import V
from openwafer.wafer.sim.engine import Event, EventKind

MAIN = "main"


class Watch:
    """Events of one PE, at most `limit`; later ones are dropped."""

    def __init__(self, x: int, y: int, limit: int) -> None:
        self.pe, self.limit = (x, y), limit
        self.done: list[Event] = []
        self.open: dict[tuple[str, EventKind], tuple[Any, int, str]] = {}

    def before(self, pe: Any, now: int) -> None:
        """Who is stalled as the cycle begins."""
        reasons = dict(_stalls(pe, now))
        for thread in [t for t, kind in self.open if kind == EventKind.STALL] + list(reasons):
            self._set(thread, EventKind.STALL, reasons.get(thread), now, reasons.get(thread, ""))

    def after(self, pe: Any, now: int) -> None:
        """What began or ended in this cycle's step."""
        task = True if pe.running else None
        known = self.open.get((MAIN, EventKind.TASK))
        if (task is None) != (known is None):
            self._set(
                MAIN,
                EventKind.TASK,
                task,
                now if task else pe.ready,
                named_task(pe.program, pe.pc, pe.place()) if task else "",
            )
        for thread, operation in _operations(pe):
            at = now if operation is not None else now + 1
            self._set(
                thread,
                EventKind.VECTOR,
                operation,
                at,
                named_operation(operation.op, operation.place) if operation else "",
            )

    def events(self, now: int) -> Iterator[Event]:
        """All so far; what is still going on ends now."""
        yield from self.done
        for (thread, kind), (_, start, name) in self.open.items():
            yield Event(self.pe, thread, kind, start, max(start, now), name)

    def _set(self, thread: str, kind: EventKind, what: Any, now: int, name: str) -> None:
        known = self.open.get((thread, kind))
        if known is not None and known[0] == what:
            return
        if known is not None:
            del self.open[thread, kind]
            if len(self.done) < self.limit and now > known[1]:
                self.done.append(Event(self.pe, thread, kind, known[1], now, known[2]))
        if what is not None:
            self.open[thread, kind] = (what, now, name)


def _stalls(pe: Any, now: int) -> Iterator[tuple[str, str]]:
    for number, thread in enumerate(pe.threads):
        if thread is None or pe.next_issue[number] > now:
            continue
        why = "its block bit" if pe.blocked_threads >> number & 1 else thread.obstacle(pe, now)
        if why is not None:
            yield f"microthread {number}", why
    if pe.program is None or pe.ready > now:
        return
    if pe.sync is not None:
        why = pe.sync.obstacle(pe, now)
        if why is not None:
            yield MAIN, why
    elif pe.running and not pe.can_issue(now):
        yield MAIN, "a microthread or an iterator"


def _operations(pe: Any) -> Iterator[tuple[str, Any]]:
    yield MAIN, pe.sync
    for number, thread in enumerate(pe.threads):
        yield f"microthread {number}", thread


def named_task(program: Program, pc: int, place: Location | None) -> str:
    """A task by the instruction it begins with."""
    found = (f.name for f in program.functions if f.entry == pc)
    return f"{next(found, 'task')}{_at(place)}"


def named_operation(op: V, place: Location | None) -> str:
    """A vector operation."""
    return f"{op.name.lower()}{_at(place)}"


def _at(place: Location | None) -> str:
    return f" {PurePath(place.path).name}:{place.line}" if place else ""
