"""Ruins the run of crash_run.py in three ways and takes it up again until it ends: its bits must be plain PyTorch's.

`simulate` lets the disk layer die at chosen operations of one process, writes torn and, if wished, unflushed data
lost. `inject` makes operations fail or lie. `Killer` sends SIGKILL to real processes at random instants.
"""

import contextlib
import ctypes
import mmap
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from openwafer.base.errors import StoreCorrupt, StoreError
from openwafer.pytorch.job import Job
from openwafer.streaming.files import FileLayer
from openwafer.streaming.store import Store
from tests.crash_run import Setup, bits, digest, make_optimizer, open_job, plain, train
from tests.faults import EIO, ENOSPC, FaultyFiles, Rule, fail, flip

SETUPS = {
    "commit every step": Setup(),
    "commit every 3": Setup(steps=7, commit_every=3),
    "2 micro-batches": Setup(micro_batches=2),
    "2 micro-batches, commit every 3": Setup(steps=7, commit_every=3, micro_batches=2),
    "roomy": Setup(tight=False),
    "Adafactor, commit every 2": Setup(commit_every=2, optimizer="Adafactor"),
}
# Pages of several chunks: many requests of a page are in flight, and a write takes its time.
LARGE = Setup(steps=5, commit_every=2, hidden_size=1100, num_blocks=2)


class Lost(AssertionError):
    """A step that should have survived did not, or the bits at the end differ."""


@dataclass
class Outcome:
    """What happened to one run: the operations it died at, and the most steps it had to repeat."""

    died_in: Counter = field(default_factory=Counter)
    repeated: int = 0
    refused: Counter = field(default_factory=Counter)


@dataclass
class Progress:
    """What a run had reached over all its lives, and so what the next one must find."""

    commit_every: int
    returned: int = 0
    durable: int = 0
    repeated: int = 0

    def step(self, step: int) -> None:
        """A step has returned, so every commit before it is durable."""
        self.returned = step
        self.durable = max(self.durable, (step - 1) // self.commit_every * self.commit_every)

    def resume(self, step: int) -> None:
        """A life begins after this step. Nothing is lost but what was in flight, and nothing is there unordered."""
        if not self.durable <= step <= self.returned + 1:
            raise Lost(
                f"step {self.returned} had returned, {step} came back: expected {self.durable} to {self.returned + 1}"
            )
        self.repeated = max(self.repeated, self.returned - step)
        self.returned = self.durable = step


def check_bits(found: dict[str, bytes], reference: dict[str, bytes]) -> None:
    """Every bit as in plain PyTorch."""
    different = [name for name in reference | found if reference.get(name) != found.get(name)]
    if different:
        raise Lost(f"different from plain PyTorch: {', '.join(different)}")


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty place for a store, removed afterwards."""
    attic = folder.with_name(folder.name + ".attic")
    for path in (folder, attic):
        shutil.rmtree(path, ignore_errors=True)
    yield folder
    for path in (folder, attic):
        shutil.rmtree(path, ignore_errors=True)


def count_operations(setup: Setup, folder: Path) -> int:
    """How many operations an undisturbed run takes."""
    layer = FaultyFiles()
    with fresh(folder):
        job = open_job(setup, folder, layer)
        train(job, setup)
        job.close()
    return len(layer.operations)


# --- simulated death --------------------------------------------------------------------------------------------------


def simulate(setup: Setup, seed: int, folder: Path, reference: dict[str, bytes], operations: int) -> Outcome:
    """One run that dies up to four times, each at a random operation; half of the time the power fails as well."""
    choice = random.Random(seed)
    losing = choice.random() < 0.5
    outcome, progress = Outcome(), Progress(setup.commit_every)
    with fresh(folder):
        for life in range(5):
            # Later lives die early, too: while the job is being resumed.
            end = operations if life == 0 or choice.random() < 0.7 else 40
            layer = FaultyFiles(crash_at=choice.randrange(end) if life < 4 else None, losing=losing, seed=seed + life)
            job: Job | None = None
            try:
                job = open_job(setup, folder, layer)
                progress.resume(job.step_count)
                train(job, setup, progress.step)
                check_bits(bits(job), reference)
                job.close()
            except BaseException:
                if not layer.dead:
                    raise
                outcome.died_in[layer.operations[-1].kind] += 1
                continue
            finally:
                if job is not None:
                    job.abandon()
                layer.power_off()
            break
        # Whatever the power failure took, it took nothing that was committed.
        job = open_job(setup, folder)
        try:
            check_bits(bits(job), reference)
        finally:
            job.abandon()
    outcome.repeated = progress.repeated
    return outcome


# --- errors and lies --------------------------------------------------------------------------------------------------

FAULTS = {
    "ENOSPC once": (("open", "allocate", "write", "sync", "rename"), fail(ENOSPC), 1),
    "ENOSPC for good": (("open", "allocate", "write", "sync", "rename"), fail(ENOSPC), None),
    "EIO once": (("*",), fail(EIO), 1),
    "EIO for good": (("*",), fail(EIO), None),
    "byte flipped on the way in": (("read",), flip, 1),
    "byte flipped for good on the way in": (("read",), flip, None),
    "byte flipped on disk": (("write",), flip, 1),
}


def inject(setup: Setup, seed: int, fault: str, folder: Path, reference: dict[str, bytes], operations: int) -> Outcome:
    """One run that meets a fault at a random operation, ends or stops with a StoreError, and is taken up again.

    A byte flipped on disk after its commit cannot be mended; it must be refused, never trained on.
    """
    kinds, act, times = FAULTS[fault]
    outcome = Outcome()
    choice = random.Random(seed)
    start = choice.randrange(operations)
    # One rule, so that "once" is once in all: it waits for the first operation of its kinds after `start`.
    seen = Counter()

    def late(operation) -> None:
        if operation.number < start or (times is not None and seen["done"] >= times):
            return
        if kinds == ("*",) or operation.kind in kinds:
            seen["done"] += 1
            act(operation)

    with fresh(folder):
        for layer in (FaultyFiles(Rule("*", "*", late)), None):
            job: Job | None = None
            try:
                job = open_job(setup, folder, layer)
                train(job, setup)
                check_bits(bits(job), reference)
                job.close()
            except StoreError as error:
                outcome.refused[type(error).__name__] += 1
                if layer is None and not (fault == "byte flipped on disk" and isinstance(error, StoreCorrupt)):
                    raise
            finally:
                if job is not None:
                    job.abandon()
    return outcome


# --- real death -------------------------------------------------------------------------------------------------------

KINDS = ("read", "write", "flush", "rename")


class Board:
    """A few numbers and a digest in memory shared with a child: what it last said survives its death."""

    FIELDS = ("resumed", "returned", "done", *KINDS)

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._numbers = (ctypes.c_int64 * len(self.FIELDS)).from_buffer(self._map)

    def __getitem__(self, name: str) -> int:
        return self._numbers[self.FIELDS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._numbers[self.FIELDS.index(name)] = value

    def clear(self) -> None:
        self._map[:] = bytes(len(self._map))
        self["resumed"] = self["returned"] = -1

    @property
    def digest(self) -> str:
        return self._map[1024 : 1024 + 64].decode()

    @digest.setter
    def digest(self, text: str) -> None:
        self._map[1024 : 1024 + 64] = text.encode()


class WatchedFiles(FileLayer):
    """Says on the board what the disk is being asked at this moment."""

    def __init__(self, board: Board):
        self.board = board
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _during(self, kind: str) -> Iterator[None]:
        with self._lock:
            self.board[kind] += 1
        yield
        with self._lock:
            self.board[kind] -= 1

    def pread(self, fd: int, buffer: memoryview, offset: int) -> None:
        with self._during("read"):
            super().pread(fd, buffer, offset)

    def pwrite(self, fd: int, buffer: memoryview, offset: int) -> None:
        with self._during("write"):
            super().pwrite(fd, buffer, offset)

    def sync(self, fd: int) -> None:
        with self._during("flush"):
            super().sync(fd)

    def replace(self, source: Path, target: Path) -> None:
        with self._during("rename"):
            super().replace(source, target)


@dataclass
class Killer:
    """Kills runs of a setup until it has killed `kills` of them, and checks each that ends.

    This process forks the ones it kills, so it must not have run any torch operation itself. With SIGINT (Ctrl-C) in
    place of SIGKILL the run closes its job and ends.
    """

    setup: Setup
    folder: Path
    choice: random.Random
    number: signal.Signals = signal.SIGKILL
    life_s: float = 0.2
    outcome: Outcome = field(default_factory=Outcome)
    runs: int = 0

    def kill(self, kills: int) -> None:
        board = Board()
        # The first optimizer imports the better part of torch: here, rather than in each child.
        make_optimizer([nn.Parameter(torch.zeros(1))])
        _wait_for(self._fork(board, lambda: setattr(board, "digest", digest(plain(self.setup)))), self._log)
        reference = board.digest
        left = kills
        while left > 0:
            left = self._one_run(board, reference, left)
            self.runs += 1

    @property
    def _log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def _one_run(self, board: Board, reference: str, left: int) -> int:
        """One run from its beginning to its end, killed as often as it can be; returns the kills that are left."""
        progress = Progress(self.setup.commit_every)
        with fresh(self.folder):
            while True:
                board.clear()
                child = self._fork(board, lambda: self._live(board))
                if left > 0 and not self._let_live(child, board):
                    os.kill(child, self.number)
                status = _wait_for(child, self._log)
                if board["resumed"] >= 0:
                    progress.resume(board["resumed"])
                if board["returned"] >= 0:
                    progress.step(board["returned"])
                self.outcome.repeated = max(self.outcome.repeated, progress.repeated)
                if status == 0:
                    if board.digest != reference:
                        raise Lost("the bits at the end differ from plain PyTorch's")
                    return left
                left -= 1
                self._count(board)

    def _let_live(self, child: int, board: Board) -> bool:
        """Wait for a random instant, half of the time one inside a write, flush or rename; True if the run ended."""
        end = time.monotonic() + self.choice.random() * self.life_s
        wanted = self.choice.choice([None, None, None, "write", "flush", "rename"])
        while time.monotonic() < end or (wanted and not board[wanted] and time.monotonic() < end + self.life_s):
            if board["done"]:
                return True
            if time.monotonic() < end:
                time.sleep(0.0005)
        return bool(board["done"])

    def _count(self, board: Board) -> None:
        doing = [kind for kind in ("rename", "flush", "write", "read") if board[kind] > 0]
        self.outcome.died_in[doing[0] if doing else "compute" if board["resumed"] >= 0 else "start"] += 1

    def _live(self, board: Board) -> None:
        job = open_job(self.setup, Store(self.folder, files=WatchedFiles(board)))
        board["resumed"] = job.step_count
        try:
            train(job, self.setup, lambda step: board.__setitem__("returned", step))
            board.digest = digest(bits(job))
        finally:
            job.close()
        board["done"] = 1

    def _fork(self, board: Board, live: Callable[[], None]) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            return child
        status = FAILED
        try:
            signal.alarm(60)  # nothing here may take so long
            with open(self._log, "w") as log:
                os.dup2(log.fileno(), 2)
                try:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
                    live()
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
                    status = 0
                except BaseException as error:  # noqa: BLE001  # a forked child must not return into its parent's code
                    traceback.print_exc()
                    sys.stderr.flush()
                    status = INTERRUPTED if _was_interrupted(error) else FAILED
        finally:
            os._exit(status)


FAILED, INTERRUPTED = 1, 3


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it all began with Ctrl-C. (One that hits torch in a context manager's exit comes out as RuntimeError.)"""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _wait_for(child: int, log: Path) -> int:
    """Exit status of a child that ended, was killed or was interrupted by us."""
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL, INTERRUPTED << 8):
        raise Lost(f"a run ended with status {status}:\n{log.read_text()[-4000:]}")
    return status
