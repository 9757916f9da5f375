"""TensorBoard scalars, for those who ask for them; without the package the request is refused, not ignored."""

import importlib.util
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from openwafer.base.errors import ConfigError
from openwafer.base.events import StepRecord


class ScalarLog(Protocol):
    """Takes numbers by step."""

    def step(self, record: StepRecord) -> None: ...

    def validation(self, step: int, loss: float) -> None: ...


class NoLog(AbstractContextManager["NoLog"]):
    """Writes nothing."""

    def step(self, record: StepRecord) -> None:
        pass

    def validation(self, step: int, loss: float) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass


class TensorBoardLog:
    """Writes into a folder that `tensorboard --logdir` reads."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        # Imported here: it is an extra, and tens of MB of memory that only its users should pay for.
        from torch.utils.tensorboard import SummaryWriter

        # What a dead process wrote beyond its last commit will be written again.
        self._writer: Any = SummaryWriter(str(folder), purge_step=steps_done + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def step(self, record: StepRecord) -> None:
        add = self._writer.add_scalar
        if not record.skipped:
            add("loss/train", record.loss, record.step)
        if record.grad_norm is not None and not record.skipped:
            add("optimizer/grad_norm", record.grad_norm, record.step)
        if record.learning_rate is not None:
            add("optimizer/learning_rate", record.learning_rate, record.step)
        add("speed/tokens_per_s", record.tokens_per_s, record.step)
        add("io/bytes_read", record.bytes_read, record.step)
        add("io/bytes_written", record.bytes_written, record.step)
        add("memory/peak_rss_bytes", record.peak_rss_bytes, record.step)
        for cause, wait_s in record.stall_s.items():
            add(f"stall_s/{cause.replace(' ', '_')}", wait_s, record.step)

    def validation(self, step: int, loss: float) -> None:
        self._writer.add_scalar("loss/validation", loss, step)


def make_scalar_log(wanted: bool, folder: Path, steps_done: int) -> NoLog | TensorBoardLog:
    """The log that log.tensorboard asks for.

    Raises:
        ConfigError: it is asked for and not installed.
    """
    if not wanted:
        return NoLog()
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "log.tensorboard is true but tensorboard is not installed: pip install 'openwafer[tensorboard]', "
            "or set log.tensorboard=false (events.jsonl is written in any case)."
        )
    return TensorBoardLog(folder, steps_done)
