"""The event file: one JSON object a line, one line a training step; the only thing that `view` and a test ever read.

A process may die in the middle of a line. The writer cuts such a torn tail off when it opens the file again, and
the reader leaves it out; anything else that is not a record is an error with its line number. After a resume the
same step may occur twice in a file (the first run died before it was durable): readers keep the later one.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from openwafer.base.errors import RunError


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did, cost and waited for.

    Attributes:
        step: number of the step, from 1.
        loss: sum of the token losses over all valid tokens of the step, divided by their number (nats).
        grad_norm: global L2 norm of the gradient before clipping; None where nobody asked for it.
        tokens: valid (not ignored) target tokens of the step.
        seconds: wall time from the call to its return.
        bytes_read, bytes_written: traffic with the disk in this step.
        stall_s: seconds the compute thread waited, by cause.
        skipped: the gradient held NaN or Inf, so no state was touched.
        learning_rate: of the first parameter group; None where there is none.
        peak_rss_bytes: largest resident set of the process so far.
        schedule: how the layers ran (kept, recomputed, ...), in a few words.
        durable_step: the last step that would survive a kill now.
        notes: what a person should read once.
        io_s: seconds with at least one disk request under way; None where nobody counted.
    """

    step: int
    loss: float
    grad_norm: float | None
    tokens: int
    seconds: float
    bytes_read: int
    bytes_written: int
    stall_s: dict[str, float]
    skipped: bool
    learning_rate: float | None
    peak_rss_bytes: int
    schedule: str
    durable_step: int
    notes: tuple[str, ...] = ()
    io_s: float | None = None

    def __post_init__(self) -> None:
        # Copies: what the caller goes on changing must not change a record.
        object.__setattr__(self, "stall_s", dict(self.stall_s))
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens per second of wall time."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def stalled_s(self) -> float:
        """Seconds the compute thread waited, for any cause."""
        return sum(self.stall_s.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object; NaN and Inf become the strings that `from_json` knows, for JSON has neither."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["stall_s"] = {cause: _from_float(wait_s) for cause, wait_s in self.stall_s.items()}
        fields["notes"] = list(self.notes)
        return {name: _from_float(value) for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The record that `to_json` wrote; unknown fields (of a newer writer) are left out.

        Raises:
            KeyError: a field is missing.
            TypeError, ValueError: a field is not what it should be.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in fields.items() if name in known}
        missing = known - values.keys() - {"notes", "io_s"}
        if missing:
            raise KeyError(", ".join(sorted(missing)))
        for name in ("loss", "seconds"):
            values[name] = float(values[name])
        for name in ("grad_norm", "learning_rate", "io_s"):
            values[name] = None if values.get(name) is None else float(values[name])
        for name in ("step", "tokens", "bytes_read", "bytes_written", "peak_rss_bytes", "durable_step"):
            values[name] = int(values[name])
        values["stall_s"] = {str(cause): float(wait_s) for cause, wait_s in values["stall_s"].items()}
        return cls(**values)


class EventWriter:
    """Appends records to a JSON-lines file, one whole line at a time."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending, first cutting off a last line that a dead process left unfinished."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_tail(self.path)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: StepRecord) -> None:
        """Append one step."""
        self._write({"event": "step", **record.to_json()})

    def mark(self, event: str, **fields: Any) -> None:
        """Append something that is not a step: ``mark("start", ...)``, ``mark("resume", step=12)``."""
        assert event != "step", "steps go through write()"
        self._write({"event": event, **{name: _from_float(value) for name, value in fields.items()}})

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _write(self, fields: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(fields, allow_nan=False, separators=(",", ":")) + "\n")


@dataclasses.dataclass(frozen=True)
class Mark:
    """An event that is not a step: where a run started, resumed or stopped."""

    event: str
    fields: Mapping[str, Any]


def read_events(path: Path) -> list[StepRecord | Mark]:
    """Everything in an event file, in the order it was written; a torn last line is left out.

    Raises:
        RunError: there is no such file, or a line of it is not an event.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RunError(
            f"cannot read the events {str(path)!r}: {error.strerror}; a run writes them as RUN/events.jsonl."
        ) from error
    whole, _, _torn = content.rpartition(b"\n")
    return [_parse(line, number, path) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]


def read_steps(path: Path) -> list[StepRecord]:
    """The steps of an event file by number; of a step that was run twice (after a crash) the later one."""
    steps = {record.step: record for record in read_events(path) if isinstance(record, StepRecord)}
    return [steps[number] for number in sorted(steps)]


def _parse(line: bytes, number: int, path: Path) -> StepRecord | Mark:
    try:
        fields = json.loads(line)
        if not isinstance(fields, dict):
            raise TypeError(f"a {type(fields).__name__}, not an object")
        event = fields.pop("event", "step")
        return StepRecord.from_json(fields) if event == "step" else Mark(str(event), fields)
    except KeyError as error:
        reason = f"without {error.args[0]}"
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error)
    shown = line[:80].decode("utf-8", "replace")
    raise RunError(
        f"{path}:{number}: not an event ({reason}): {shown!r}; every line must be one JSON object as the run wrote it. "
        "Remove the line, or the file if it is not an event file."
    )


def _cut_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        keep = end
        while keep > 0:
            start = max(0, keep - 65_536)
            file.seek(start)
            newline = file.read(keep - start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep != end:
            file.truncate(keep)


def _from_float(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
