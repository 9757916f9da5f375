"""What a person watching a run sees: one live table on a terminal, one line a step anywhere else.

It is told of every step and decides only how to show it; nothing is measured here.
"""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import rich.progress
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from openwafer.base.events import StepRecord
from openwafer.base.units import format_bytes, format_seconds

_RECENT = 20


class Tally:
    """Sums over the steps of this process, and over the whole run where a run's total is asked."""

    def __init__(self, steps: int, written_before_bytes: int = 0) -> None:
        self.steps = steps
        self.last: StepRecord | None = None
        self.seconds = 0.0
        self.skipped = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self.stall_s: dict[str, float] = {}
        self.written_before_bytes = written_before_bytes
        self._recent: deque[StepRecord] = deque(maxlen=_RECENT)

    def add(self, record: StepRecord) -> None:
        self.last = record
        self.seconds += record.seconds
        self.skipped += record.skipped
        self.bytes_read += record.bytes_read
        self.bytes_written += record.bytes_written
        for cause, wait_s in record.stall_s.items():
            self.stall_s[cause] = self.stall_s.get(cause, 0.0) + wait_s
        self._recent.append(record)

    @property
    def tokens_per_s(self) -> float:
        """Median over the last steps: one slow step is not the run's speed."""
        return statistics.median(record.tokens_per_s for record in self._recent) if self._recent else 0.0

    @property
    def remaining_s(self) -> float:
        """Seconds to the last step at the speed of the last ones."""
        if self.last is None:
            return float("nan")
        return (self.steps - self.last.step) * statistics.median(record.seconds for record in self._recent)

    def stalls(self) -> str:
        """Causes of waiting, longest first, as shares of the time so far."""
        if not self.seconds:
            return "none"
        shares = sorted(((wait_s / self.seconds, cause) for cause, wait_s in self.stall_s.items()), reverse=True)
        return ", ".join(f"{cause} {share:.1%}" for share, cause in shares if share >= 0.0005) or "none"


class Progress(Protocol):
    """Shows a run as it goes; a context manager around the steps."""

    def step(self, record: StepRecord) -> None: ...

    def say(self, text: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


@contextlib.contextmanager
def show_share(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Shows how much of something is done, on stderr: a bar on a terminal, a line every tenth anywhere else.

    Gives a function of (done, total).
    """
    console = console or Console(stderr=True)
    if console.is_terminal:
        with rich.progress.Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenths = 0

    def line(done: int, total: int) -> None:
        nonlocal tenths
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            console.print(f"{what}: {tenths * 10} %")

    yield line


def make_progress(console: Console, tally: Tally) -> Progress:
    """The live table on a terminal, lines elsewhere."""
    return LiveProgress(console, tally) if console.is_terminal else LineProgress(console, tally)


class LineProgress:
    """One line a step, but not more than one a second; skipped and last steps always."""

    def __init__(self, console: Console, tally: Tally, interval_s: float = 1.0) -> None:
        self._console = console
        self._tally = tally
        self._interval_s = interval_s
        self._shown_at: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def step(self, record: StepRecord) -> None:
        self._tally.add(record)
        for note in record.notes:
            self.say(f"note: {note}")
        now = time.monotonic()
        due = self._shown_at is None or now - self._shown_at >= self._interval_s
        if due or record.skipped or record.step == self._tally.steps:
            self._shown_at = now
            self.say(self._line(record))

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, record: StepRecord) -> str:
        loss = "skipped: NaN or Inf in the gradient" if record.skipped else f"loss {record.loss:.4f}"
        parts = [
            f"step {record.step}/{self._tally.steps}",
            loss,
            f"{record.tokens_per_s:,.0f} tokens/s",
            f"stall {_percent(record.stalled_s, record.seconds)}",
            f"read {format_bytes(record.bytes_read)}",
            f"written {format_bytes(record.bytes_written)}",
            f"peak RSS {format_bytes(record.peak_rss_bytes)}",
        ]
        if record.step < self._tally.steps:
            parts.append(f"ETA {format_seconds(self._tally.remaining_s)}")
        return "  ".join(parts)


class LiveProgress:
    """A table that stays in place; what is said scrolls above it."""

    def __init__(self, console: Console, tally: Tally) -> None:
        self._tally = tally
        self._live = Live(self._screen(), console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def step(self, record: StepRecord) -> None:
        self._tally.add(record)
        for note in record.notes:
            self.say(f"note: {note}")
        self._live.update(self._screen())

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def _screen(self) -> Group:
        tally, record = self._tally, self._tally.last
        if record is None:
            return Group(Text(f"step 1 of {tally.steps} is under way"))
        loss = "skipped (NaN or Inf)" if record.skipped else f"{record.loss:.4f}"
        rate = "-" if record.learning_rate is None else f"{record.learning_rate:.3g}"
        norm = "-" if record.grad_norm is None else f"{record.grad_norm:.3g}"
        written = format_bytes(tally.written_before_bytes + tally.bytes_written)
        table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
        for style in ("dim", "", "dim", ""):
            table.add_column(style=style, no_wrap=True)
        table.add_row(
            "loss", Text(loss, "bold red" if record.skipped else "bold"), "tokens/s", f"{tally.tokens_per_s:,.0f}"
        )
        table.add_row("gradient norm", norm, "learning rate", rate)
        table.add_row(
            "read in step", format_bytes(record.bytes_read), "written in step", format_bytes(record.bytes_written)
        )
        table.add_row("peak RSS", format_bytes(record.peak_rss_bytes), "written in all", written)
        table.add_row("steps skipped", str(tally.skipped), "durable step", str(record.durable_step))
        foot = Table.grid(padding=(0, 2))
        foot.add_row(Text("stall", "dim"), tally.stalls())
        foot.add_row(Text("schedule", "dim"), record.schedule)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"step {record.step}/{tally.steps}", "bold"),
            ProgressBar(total=tally.steps, completed=record.step, width=40),
            Text(f"ETA {format_seconds(tally.remaining_s)}" if record.step < tally.steps else "done"),
        )
        return Group(head, table, foot)


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else "0.0%"
