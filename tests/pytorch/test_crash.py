"""Killed, interrupted, out of space, lied to by the disk: a run that is taken up again ends with plain PyTorch's bits.

The long form is benchmarks/crash.py; what is done to the run is in tests/crash_campaign.py.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import openwafer as ow
from openwafer.base.errors import (
    ConfigError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreIOError,
    StoreLocked,
    StoreTimeout,
)
from openwafer.pytorch.job import Job
from openwafer.streaming.files import FileLayer
from openwafer.streaming.manifest import read_manifest, write_manifest
from openwafer.streaming.store import Store
from tests.crash_campaign import FAULTS, SETUPS, check_bits, count_operations, inject, simulate
from tests.crash_run import FEATURES, Setup, batch, bits, make_optimizer, open_job, plain, seed_everything, train
from tests.faults import EIO, ENOSPC, FaultyFiles, Hang, Rule, die, fail, flip_on_disk, leaks

ROOT = Path(__file__).parents[2]
STEPS, RARE = Setup(), SETUPS["commit every 3"]


@pytest.fixture(autouse=True)
def _one_thread(left_behind: Callable[[], set[str]]) -> Iterator[None]:
    """Tiny models are fastest on one thread; and nothing may stay open or running."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert not left_behind()


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[[], set[str]]:
    """What is open or running that was not before the test."""
    before = leaks(tmp_path)
    return lambda: set(leaks(tmp_path)).difference(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


plain_bits = cache(plain)


@cache
def _operations(setup: Setup, folder: Path) -> int:
    return count_operations(setup, folder)


def operations(setup: Setup, tmp_path: Path) -> int:
    """How many operations a run takes; counted once for all tests."""
    return _operations(setup, tmp_path.parent / "counted")


def finish(setup: Setup, folder: Path) -> int:
    """Take a run up again to its end, check its bits; the step it began after."""
    job = open_job(setup, folder)
    try:
        resumed = job.step_count
        assert job.extra == {"position": resumed}
        train(job, setup)
        check_bits(bits(job), plain_bits(setup))
    finally:
        job.abandon()
    return resumed


def run(setup: Setup, folder: Path, files: FileLayer) -> None:
    """A run that may fail."""
    job = open_job(setup, folder, files)
    try:
        train(job, setup)
    finally:
        job.abandon()


def go(job: Job, setup: Setup, steps: int) -> None:
    """Train up to a step."""
    train(job, dataclasses.replace(setup, steps=steps))


# --- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETUPS)
@pytest.mark.parametrize("seed", range(3))
def test_death_and_power_failure_at_random_operations(tmp_path, name, seed):
    setup = SETUPS[name]
    simulate(setup, 10 * seed, tmp_path / "store", plain_bits(setup), operations(setup, tmp_path))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("write", "pages/*"),
        ("write", "gradients.scratch"),
        ("write", "manifest.json.new"),
        ("write", "buffers-*"),
        ("sync", "pages/*"),
        ("sync", "manifest.json.new"),
        ("rename", "buffers-*"),
        ("rename", "manifest.json"),
        ("sync_folder", "store"),
    ],
)
def test_death_at_every_kind_of_operation_of_a_commit(folder, kind, path):
    layer = FaultyFiles(Rule(kind, path, die, skip=3), losing=True)
    with pytest.raises(BaseException, match="at operation"):
        run(STEPS, folder, layer)
    assert layer.dead
    layer.power_off()
    finish(STEPS, folder)


def test_sigkill_and_ctrl_c_at_random_instants():
    """Of real processes, by the benchmark in its short form."""
    numbers = {"kills": 10, "interrupts": 10, "crashes": 0, "faults": 0}
    options = [f"--{name}={number}" for name, number in numbers.items()]
    result = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "crash.py", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(re.findall(r"all ended with the bits of PyTorch +\d+ +10 ", result.stdout)) == 2, result.stdout


def test_steps_return_before_they_are_durable_but_never_by_more_than_one(folder):
    job = open_job(STEPS, folder)
    for step in range(1, 5):
        job.set_extra({"position": step})
        record = job.step(batch(step - 1))
        assert record.durable_step in (step - 1, step)
    job.commit()
    assert job.durable_step == 4
    job.abandon()
    assert finish(STEPS, folder) == 4


# --- errors and lies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(2))
def test_faults_at_random_operations(tmp_path, fault, seed):
    setup = list(SETUPS.values())[seed]
    inject(setup, seed, fault, tmp_path / "store", plain_bits(setup), operations(setup, tmp_path))


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("write", "pages/*", r"no space left while writing \d+ bytes at \d+ of .*/pages/0000\d\.[ab] "),
        ("write", "gradients.scratch", r"no space left while writing \d+ bytes at \d+ of .*/gradients.scratch "),
        ("allocate", "gradients.scratch", r"no space left while creating .*/gradients.scratch"),
        ("write", "manifest.json.new", r"no space left while committing .*/manifest.json "),
        ("write", "buffers-*", r"no space left while writing .*/buffers-\d.bin "),
        ("sync", "pages/*", r"no space left while flushing .*/pages/0000\d\.[ab] "),
    ],
)
def test_a_full_disk_loses_nothing(folder, kind, path, message, left_behind):
    rule = Rule(kind, path, fail(ENOSPC), skip=0 if kind == "allocate" else 12 if "pages" in path else 2)
    job = open_job(RARE, folder, FaultyFiles(rule))
    with pytest.raises(StoreFull, match=message + r".*Nothing is lost: the last committed step is whole"):
        train(job, RARE)
    with pytest.raises(StoreFull, match="Free space on that file system and resume"):
        job.step(batch(0))
    with contextlib.suppress(StoreFull):
        job.close()
    assert not left_behind()
    finish(RARE, folder)


def test_an_error_in_the_first_commit_leaves_nothing_open_and_the_folder_usable(folder, left_behind):
    for kind, path in (("allocate", "00003.a"), ("write", "00003.a"), ("rename", "manifest.json")):
        with pytest.raises(StoreFull):
            open_job(STEPS, folder, FaultyFiles(Rule(kind, f"*{path}", fail(ENOSPC))))
        assert not left_behind()
    finish(STEPS, folder)


def test_compile_closes_the_store_it_opened_when_it_fails(folder, monkeypatch, left_behind):
    monkeypatch.setattr(FileLayer, "allocate", lambda self, fd, size: fail(ENOSPC)(None))
    model = nn.Linear(4, 4)
    for _ in range(2):  # the second attempt meets no lock of the first
        with pytest.raises(StoreFull):
            ow.compile(model, optimizer=make_optimizer, store=folder, precision="fp32")
        assert not left_behind()


def test_a_transient_read_error_is_mended_and_reported(folder, caplog):
    layer = FaultyFiles(Rule("read", "pages/*", fail(EIO), skip=20, times=1))
    with caplog.at_level(logging.WARNING, "openwafer"):
        job = open_job(STEPS, folder, layer)
        train(job, STEPS)
    check_bits(bits(job), plain_bits(STEPS))
    job.close()
    assert [m for m in caplog.messages if m.startswith("input/output error at")]


def test_a_permanent_read_error_stops_the_run_and_names_the_file(folder, left_behind):
    job = open_job(STEPS, folder, FaultyFiles(Rule("read", "pages/00002.*", fail(EIO), skip=3)))
    with pytest.raises(
        StoreIOError, match=r"reading \d+ bytes at \d+ of .*/pages/00002.[ab] failed: Input/output error"
    ):
        train(job, STEPS)
    with pytest.raises(StoreIOError):
        job.close()
    assert not left_behind()
    finish(STEPS, folder)


def flip_when(folder: Path, path: str, count: int) -> tuple[FaultyFiles, Rule]:
    """A layer that flips a bit behind the back of everybody before the `count`-th read of a file."""

    def act(operation) -> None:
        flip_on_disk(operation.path, operation.offset + operation.num_bytes // 2)

    rule = Rule("read", path, act, skip=count, times=1)
    return FaultyFiles(rule), rule


@pytest.mark.parametrize("path", ["gradients.scratch", "pages/00002.b"], ids=["gradients", "uncommitted page"])
def test_a_flipped_bit_in_what_is_not_committed_is_found_and_resuming_mends_it(folder, path):
    layer, rule = flip_when(folder, path, 1)
    job = open_job(RARE, folder, layer)
    with pytest.raises(
        StoreCorrupt, match=rf"{path} are not what was written \(checksum mismatch\)\. If this run wrote"
    ):
        train(job, RARE)
    assert rule.hits > 1
    job.abandon()
    assert finish(RARE, folder) == 0


def test_a_flipped_bit_in_a_committed_page_is_refused_until_a_snapshot_is_restored(folder, left_behind):
    job = open_job(STEPS, folder)
    go(job, STEPS, 2)
    job.snapshot("two")
    go(job, STEPS, 3)
    job.close()
    manifest = read_manifest(FileLayer(), folder / "manifest.json")
    flip_on_disk(folder / "pages" / manifest["pages"][2]["file"], 0)
    with pytest.raises(StoreCorrupt, match=r"restore the file from a snapshot or a copy"):
        finish(STEPS, folder)
    assert not left_behind()
    Store(folder, restore="two").close()
    assert finish(STEPS, folder) == 2


@pytest.mark.parametrize("what", ["manifest.json", "buffers"])
def test_a_flipped_bit_in_the_manifest_or_the_buffers_is_refused(folder, what, left_behind):
    job = open_job(STEPS, folder)
    go(job, STEPS, 2)
    job.close()
    manifest = read_manifest(FileLayer(), folder / "manifest.json")
    flip_on_disk(folder / (what if what != "buffers" else manifest["buffers"]["file"]), 99)
    with pytest.raises(StoreCorrupt, match=r"is damaged \(checksum mismatch\): restore it from a snapshot or a copy"):
        open_job(STEPS, folder)
    assert not left_behind()


# --- what is not this run's -------------------------------------------------------------------------------------------


def test_the_store_of_another_model_is_refused_unharmed(folder):
    job = open_job(STEPS, folder)
    go(job, STEPS, 2)
    job.close()
    with pytest.raises(StoreError, match="Give the model, optimizer and layers it was made with, or use another store"):
        open_job(dataclasses.replace(STEPS, hidden_size=20), folder)
    with pytest.raises(StoreError, match="holds 5 pages, this model makes 6"):
        open_job(dataclasses.replace(STEPS, num_blocks=4), folder)
    assert finish(STEPS, folder) == 2


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"step": None},
        {"step": 1, "extra": []},
        {"random": {"python": [3, [1, 2], None], "numpy": [], "torch": "zz"}},
        {"random": {"python": 7, "numpy": 7, "torch": 7}},
        {"groups": 7},
        {"groups": []},
        {"steps": [[0]]},
        {"steps": "x"},
    ],
)
def test_a_hostile_state_is_refused_in_words(folder, state, left_behind):
    job = open_job(STEPS, folder)
    job.close()
    body = read_manifest(FileLayer(), folder / "manifest.json")
    body["state"] = {**body["state"], **state} if state else {}
    write_manifest(FileLayer(), folder / "manifest.json", body)
    with pytest.raises(StoreCorrupt, match=f"{folder}: the committed state is not what this job would have written"):
        open_job(STEPS, folder)
    assert not left_behind()


def test_a_second_job_on_the_same_folder_is_refused(folder):
    job = open_job(STEPS, folder)
    with pytest.raises(StoreLocked, match="in use by this process already"):
        open_job(STEPS, folder)
    go(job, STEPS, 1)
    job.close()
    assert finish(STEPS, folder) == 1


# --- a disk that hangs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path", "culprit"),
    [
        ("read", "pages/00002.*", "reading blocks.1"),
        ("write", "pages/00002.b", "writing blocks.1"),
        ("sync", "pages/00002.b", r"flushing .*/pages/00002.b"),
        ("rename", "manifest.json", "committing to .*/store"),
        ("write", "gradients.scratch", "spilling gradients of"),
    ],
)
def test_a_hanging_disk_is_named_and_left_behind(folder, kind, path, culprit, left_behind):
    hang = Hang()
    rule = Rule("nothing", path, hang)
    job = open_job(STEPS, Store(folder, files=FaultyFiles(rule), timeout_s=0.3))
    go(job, STEPS, 1)
    rule.kind = kind
    started = time.monotonic()
    with pytest.raises(StoreTimeout, match=rf"{culprit}.* has not finished in 0.3 s: the disk or its driver hangs"):
        train(job, STEPS)
    job.abandon()
    assert time.monotonic() - started < 10
    hang.release()
    _eventually(lambda: not left_behind(), job.store.close)
    finish(STEPS, folder)


def _eventually(condition: Callable[[], bool], attempt: Callable[[], object]) -> None:
    for _ in range(100):
        attempt()
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("never")


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


class Interruption(nn.Module):
    """Raises KeyboardInterrupt at a chosen call, in the forward or in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.at = {"forward": -1, "backward": -1}
        self.calls = {"forward": 0, "backward": 0}

    def count(self, what: str) -> None:
        self.calls[what] += 1
        if self.calls[what] == self.at[what]:
            raise KeyboardInterrupt

    def watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self.count("forward"))
        module.register_full_backward_hook(lambda *_: self.count("backward"))


@pytest.mark.parametrize("name", ["commit every step", "commit every 3", "2 micro-batches, commit every 3"])
@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("end", [Job.close, Job.abandon])
def test_ctrl_c_in_the_middle_of_a_step(folder, name, what, end, left_behind):
    """`close` commits the state before the step, not the half of it that changed buffers and random state."""
    setup = SETUPS[name]
    job = open_job(setup, folder)
    go(job, setup, 2)
    interruption = Interruption()
    interruption.watch(job.model.blocks[1])
    interruption.at[what] = 1
    with pytest.raises(KeyboardInterrupt):
        train(job, setup)
    end(job)
    end(job)
    assert not left_behind()
    expected = (2,) if end is Job.close else (1, 2) if setup.commit_every == 1 else (0,)
    assert finish(setup, folder) in expected


def test_an_update_that_was_interrupted_half_way_is_not_committed(folder, monkeypatch):
    job = open_job(RARE, folder)
    go(job, RARE, 4)
    issue = job._streamer.issue

    def interrupted(ticket) -> None:
        issue(ticket)
        raise KeyboardInterrupt

    monkeypatch.setattr(job._streamer, "issue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(job, RARE)
    for call in (job.commit, job.update, job.state_dict, lambda: job.step(batch(0))):
        with pytest.raises(StoreError, match=r"the update of step 5 was interrupted half-way.* go on from step 3"):
            call()
    job.close()
    assert finish(RARE, folder) == 3


def test_a_commit_in_the_middle_of_a_step_is_the_state_before_it(folder):
    job = open_job(RARE, folder)
    go(job, RARE, 4)
    job.backward(batch(4))
    job.commit({"position": 4})
    assert job.durable_step == 4
    job.abandon()
    assert finish(RARE, folder) == 4


# --- what travels with a commit ---------------------------------------------------------------------------------------


def test_extra_is_taken_when_the_step_ends_not_when_it_is_written(folder):
    job = open_job(STEPS, folder)
    mine = {"position": 0, "seen": []}
    for step in range(3):
        mine["position"] = step + 1
        job.set_extra(mine)
        job.step(batch(step))
        job.extra["position"] = 99
        mine["seen"].append(step)  # the commit of this step may not have been written yet
    job._streamer.wait_committed()
    job.abandon()
    job = open_job(STEPS, folder)
    assert job.extra == {"position": 3, "seen": [0, 1]}
    job.abandon()


def test_extra_that_is_not_json_is_refused_at_once(folder):
    job = open_job(STEPS, folder)
    job.set_extra({"position": torch.ones(2)})
    with pytest.raises(ConfigError, match="extra must be JSON"):
        job.step(batch(0))
    job.abandon()
    finish(STEPS, folder)


class Replaced(nn.Module):
    """Buffers that change without a new version: replaced, and by batch-norm's own kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, FEATURES)
        self.norm = nn.BatchNorm1d(FEATURES, momentum=0.5)
        self.norm.num_batches_tracked = None
        self.register_buffer("seen", torch.zeros(FEATURES))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        del y
        if self.training:
            self.seen = self.seen * 0.5 + x.detach().mean(0)
        return self.norm(self.linear(x)).square().mean()


@pytest.mark.parametrize("commit_every", [1, 2])
def test_buffers_are_saved_however_they_change(folder, commit_every):
    def compiled() -> Job:
        seed_everything()
        return ow.compile(
            Replaced(), optimizer=make_optimizer, store=folder, precision="fp32", keep="all", commit_every=commit_every
        )

    job = compiled()
    for step in range(3):
        job.step(batch(step))
    job.close()
    expected = bits(job_before := compiled())
    job_before.abandon()

    seed_everything()
    model = Replaced()
    optimizer = make_optimizer(model.parameters())
    for step in range(3):
        model(*batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in model.state_dict().items():
        assert value.numpy().tobytes() == expected[name], name


SCHEDULERS = {
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [2, 4], gamma=0.1),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.1, step_size_up=3, cycle_momentum=False),
}


# torch itself wants a number for the learning rate of the other two.
TENSORS = [name for name in SCHEDULERS if name not in ("cyclic", "one cycle")]


@pytest.mark.parametrize(
    ("name", "tensor"), [*((name, False) for name in SCHEDULERS), *((name, True) for name in TENSORS)]
)
def test_schedulers_go_on_where_they_were(folder, name, tensor):
    def compiled(place: Path | None) -> Job:
        seed_everything()
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01) if tensor else 0.01)
        scheduler = SCHEDULERS[name](optimizer)
        return ow.compile(
            model,
            optimizer=optimizer,
            scheduler=scheduler,
            store=place,
            precision="fp32",
            loss=lambda output, x: (output**2).mean(),
        )

    job, rates = compiled(None), []
    for step in range(6):
        rates.append(job.step(batch(step)[0]).learning_rate)
    expected = bits(job)
    job.close()
    for step in range(6):
        job = compiled(folder)
        assert job.step_count == step
        record = job.step(batch(step)[0])
        assert record.learning_rate == rates[step]
        if step < 5:
            job.close()
    found = bits(job)
    job.close()
    assert {k: v for k, v in found.items() if not k.endswith("python")} == {
        k: v for k, v in expected.items() if not k.endswith("python")
    }


# --- snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_of_a_job_keeps_its_bits_while_training_goes_on(folder):
    job = open_job(RARE, folder)
    go(job, RARE, 2)
    place = job.snapshot("two")
    kept = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    go(job, RARE, 5)
    job.snapshot("five")
    train(job, RARE)
    check_bits(bits(job), plain_bits(RARE))
    job.close()
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == kept
    assert finish(RARE, folder) == 7
    for name, step in (("two", 2), ("five", 5), ("two", 2)):
        Store(folder, restore=name).close()
        assert finish(RARE, folder) == step


@pytest.mark.parametrize("seed", range(4))
def test_death_after_a_snapshot(folder, seed):
    """The first write after a snapshot takes a fresh file: dying there must not cost the snapshot or the commit."""
    job = open_job(STEPS, folder)
    go(job, STEPS, 1)
    job.snapshot("one")
    job.close()
    layer = FaultyFiles(losing=True, seed=seed)
    job = open_job(STEPS, folder, layer)
    layer.crash_at = len(layer.operations) + 15 * seed
    with pytest.raises(BaseException, match="at operation"):
        train(job, STEPS)
    job.abandon()
    layer.power_off()
    assert finish(STEPS, folder) >= 1
    Store(folder, restore="one").close()
    assert finish(STEPS, folder) == 1


# --- construction -----------------------------------------------------------------------------------------------------


def built(store: Store, memory: int) -> nn.Sequential:
    """A model in two parts, each under an `init` of its own."""
    torch.manual_seed(3)
    with ow.init(store, memory=memory):
        first = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    with ow.init(store, memory=memory):
        second = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    return nn.Sequential(first, second)


def test_what_a_process_that_died_while_it_built_a_model_left_is_removed(folder):
    (folder / "init").mkdir(parents=True)
    stale = folder / "init" / "1-140000000000-000000.bin"
    stale.write_bytes(bytes(6400))
    store = Store(folder)
    model = built(store, 1000)
    assert len(list((folder / "init").iterdir())) > 2
    assert not stale.exists()
    job = ow.compile(model, optimizer=make_optimizer, precision="fp32")
    assert not (folder / "init").exists()
    torch.manual_seed(3)
    plain_model = nn.Sequential(*(nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40)) for _ in range(2)))
    for name, value in job.state_dict().items():
        assert torch.equal(value, plain_model.state_dict()[name]), name
    job.close()


# --- nothing is left behind -------------------------------------------------------------------------------------------


def test_nothing_is_left_open_or_running(folder):
    def open_fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    open_job(STEPS, folder).close()
    fds, threads = open_fds(), threading.active_count()
    for end, (name, setup) in itertools.product((Job.close, Job.abandon), SETUPS.items()):
        job = open_job(setup, folder.with_name(name))
        job.step(batch(0), micro_batches=setup.micro_batches)
        end(job)
    with pytest.raises(StoreError):
        open_job(dataclasses.replace(STEPS, hidden_size=20), folder)
    assert (open_fds(), threading.active_count()) == (fds, threads)
    assert not (folder / "gradients.scratch").exists()


def test_the_context_manager_commits_or_abandons(folder):
    with open_job(RARE, folder) as job:
        go(job, RARE, 2)

    def fail_at_step_4() -> None:
        with open_job(RARE, folder) as job:
            go(job, RARE, 4)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_step_4()
    assert finish(RARE, folder) == 3
