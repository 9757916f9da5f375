"""The store without a model: what is committed stays, what is not never counts, whatever the disk does in between."""

import dataclasses
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from openwafer.base.errors import StoreCorrupt, StoreError, StoreFull, StoreIOError, StoreLocked, StoreTimeout
from openwafer.streaming.files import Buffer, FileLayer, checksum
from openwafer.streaming.page import PageSpec, layout_page
from openwafer.streaming.store import Store, StoredPage
from openwafer.streaming.update import StateTensor
from tests.faults import EIO, ENOSPC, Crash, FaultyFiles, Hang, Operation, Rule, fail, flip_on_disk, leaks

FLOAT = torch.float32


@pytest.fixture(autouse=True)
def _no_leaks(tmp_path: Path):
    before = leaks(tmp_path)
    yield
    assert leaks(tmp_path) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def spec(index: int, numel: int = 3000, *, trainable: bool = True, moments: torch.dtype = FLOAT) -> PageSpec:
    state = [StateTensor("exp_avg", (numel,), moments)] if trainable else []
    return layout_page(index, f"layer{index}", FLOAT, trainable, [(f"{index}.w", (numel,), 0, state)], True)


SPECS = [spec(0), spec(1, 5000), spec(2, 1500, trainable=False)]


def write_page(store: Store, page: StoredPage, value: int) -> None:
    """New state of a page, all of it one byte."""
    slot = store.turn(page)
    for number, region in enumerate(page.spec.regions):
        for chunk in range(region.num_chunks):
            start, stop = region.chunk_range(chunk)
            buffer = Buffer(stop - start)
            buffer.tensor.fill_(value)
            store.io.wait(store.write(slot, page.spec, number, chunk, buffer.bytes), "writing")
    page.current = page.target_name


def read_page(store: Store, page: StoredPage) -> set[int]:
    """The bytes that occur in a page."""
    found: set[int] = set()
    for number, region in enumerate(page.spec.regions):
        for chunk in range(region.num_chunks):
            start, stop = region.chunk_range(chunk)
            buffer = Buffer(stop - start)
            store.io.wait(store.read(page, number, chunk, buffer.bytes), f"reading {page.spec.name}")
            found.update(bytes(buffer.bytes))
    return found


def step(store: Store, value: int) -> None:
    """As a step does it: write every trained page, commit."""
    for page in store.pages:
        if page.spec.trainable or page.durable is None:
            write_page(store, page, value)
    store.commit({"step": value}, bytes([value]) * 10)


def contents(store: Store) -> int:
    """The one value that everything committed has."""
    assert store.manifest is not None
    value = store.manifest["state"]["step"]
    for page in store.pages:
        if page.spec.trainable:
            assert read_page(store, page) == {value}, (page.spec.name, value)
    assert store.read_buffers() == bytes([value]) * 10
    return value


def opened(folder: Path, **options) -> Store:
    """A store with its pages attached."""
    store = Store(folder, **options)
    try:
        store.attach(SPECS)
    except BaseException:
        store.close()
        raise
    return store


def make(folder: Path, *values: int) -> None:
    """A store on disk after some steps."""
    store = opened(folder)
    for value in values:
        step(store, value)
    store.close()


def train(folder: Path, files: FileLayer, committed: list[int]) -> None:
    """Steps until something happens; `committed` gets those that were."""
    store = opened(folder, files=files)
    try:
        for value in range(1, 10):
            step(store, value)
            committed.append(value)
    finally:
        store.close()


def found(folder: Path) -> int:
    """What a new process would find."""
    store = opened(folder)
    try:
        return contents(store)
    finally:
        store.close()


# --- commits ----------------------------------------------------------------------------------------------------------


def test_a_committed_state_is_found_again(folder):
    store = Store(folder)
    assert store.manifest is None
    assert store.attach(SPECS) is False
    step(store, 1)
    store.close()
    store = Store(folder)
    assert store.attach(SPECS) is True
    assert contents(store) == 1
    store.close()
    store.close()


def test_what_was_not_committed_never_was(folder):
    make(folder, 1)
    store = opened(folder)
    for page in store.pages[:2]:
        write_page(store, page, 2)
    store.close()
    assert found(folder) == 1


def test_the_committed_slot_is_not_touched_until_the_next_commit(folder):
    store = opened(folder)
    step(store, 1)
    before = (folder / "pages" / "00000.a").read_bytes()
    for value in (2, 3):  # two steps between commits
        write_page(store, store.pages[0], value)
        assert (folder / "pages" / "00000.a").read_bytes() == before
        assert read_page(store, store.pages[0]) == {value}
    store.commit({"step": 3}, None)
    assert store.pages[0].durable == "b"
    assert store.pages[1].durable == "a"
    store.close()


def test_a_frozen_page_has_one_slot(folder):
    make(folder, 1)
    assert sorted(path.name for path in (folder / "pages").iterdir()) == [
        "00000.a",
        "00000.b",
        "00001.a",
        "00001.b",
        "00002.a",
    ]


def test_optimizer_state_begins_as_zeros_that_nobody_writes(folder):
    store = opened(folder)
    store.zero_state(store.pages[0])
    buffer = Buffer(store.pages[0].spec.regions[1].num_bytes)
    store.io.wait(store.read(store.pages[0], 1, 0, buffer.bytes), "reading")
    assert not any(buffer.bytes)
    assert store.io.bytes_written == 0
    store.close()


def test_nothing_is_left_of_an_attempt_that_died_before_its_first_commit(folder):
    """Its files hold another model's parameters where this one's state should be zeros."""
    store = Store(folder)
    store.attach([spec(0, 9000), spec(1), spec(2), spec(3)])
    for page in store.pages:
        write_page(store, page, 7)
    store.close()
    test_optimizer_state_begins_as_zeros_that_nobody_writes(folder)
    assert not (folder / "pages" / "00003.a").exists()


def test_buffers_take_turns_and_stay_when_none_are_given(folder):
    store = opened(folder)
    step(store, 1)
    first = store.manifest["buffers"]["file"]
    store.commit({"step": 1}, None)
    assert store.manifest["buffers"]["file"] == first
    store.commit({"step": 1}, b"other")
    assert store.manifest["buffers"]["file"] != first
    assert store.read_buffers() == b"other"
    store.close()
    store = opened(folder)
    assert store.read_buffers() == b"other"
    store.commit({"step": 1}, b"")
    assert store.manifest["buffers"]["file"] == first
    assert store.read_buffers() == b""
    store.close()


def test_a_store_in_memory_touches_no_disk():
    store = Store(None)
    assert store.attach(SPECS) is False
    store.commit({"step": 1}, b"x")
    assert store.manifest is None
    with pytest.raises(StoreError, match="no committed state to snapshot"):
        store.snapshot("x")
    store.close()


def test_state_that_is_not_json_changes_nothing(folder):
    store = opened(folder)
    step(store, 1)
    with pytest.raises(StoreError, match="not JSON"):
        store.commit({"step": object()}, b"new")
    assert contents(store) == 1
    store.close()
    assert found(folder) == 1


def test_a_store_serves_one_job(folder):
    store = opened(folder)
    with pytest.raises(StoreError, match="is in use by another job: open a new Store"):
        store.attach(SPECS)
    store.close()
    with pytest.raises(StoreError, match="is closed: open a new Store"):
        store.attach(SPECS)


# --- death ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(25))
def test_death_and_power_failure_at_any_operation_leave_the_last_commit(folder, seed):
    choice = random.Random(seed)
    make(folder, 1)
    layer = FaultyFiles(losing=bool(seed % 2), seed=seed)
    store = opened(folder, files=layer)
    layer.crash_at = len(layer.operations) + choice.randrange(40)
    committed = 1
    try:
        for value in (2, 3, 4, 5):
            step(store, value)
            committed = value
    except Crash:
        pass
    store.close()
    layer.power_off()
    assert found(folder) in (committed, committed + 1)


@pytest.mark.parametrize("seed", range(12))
def test_death_while_the_store_is_made(folder, seed):
    layer = FaultyFiles(crash_at=2 * seed, losing=bool(seed % 2), seed=seed)
    with pytest.raises(Crash):
        train(folder, layer, [])
    layer.power_off()
    make(folder, 2)
    assert found(folder) == 2


def test_a_spare_slot_that_is_missing_or_short_is_made_anew(folder):
    make(folder, 1)
    (folder / "pages" / "00000.b").unlink()
    os.truncate(folder / "pages" / "00001.b", 100)
    (folder / "pages" / "00001.b.new").touch()
    store = opened(folder)
    step(store, 2)
    store.close()
    assert found(folder) == 2
    assert not (folder / "pages" / "00001.b.new").exists()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_committed_page_that_is_missing_or_truncated_is_corrupt(folder):
    make(folder, 1)
    os.truncate(folder / "pages" / "00001.a", 4096)
    with pytest.raises(StoreCorrupt, match=r"pages/00001.a has 4096 bytes, 40960 are needed: it was truncated"):
        opened(folder)
    (folder / "pages" / "00001.a").unlink()
    with pytest.raises(StoreCorrupt, match=r"pages/00001.a is missing: restore it from a snapshot or a copy"):
        opened(folder)


def test_a_flipped_bit_in_a_page_is_found_when_it_is_read(folder):
    make(folder, 1)
    flip_on_disk(folder / "pages" / "00001.a", 30_000)
    store = opened(folder)
    assert read_page(store, store.pages[0]) == {1}
    with pytest.raises(StoreCorrupt, match=r"20480 bytes at 20480 of .*/pages/00001.a are not what was written"):
        read_page(store, store.pages[1])
    store.close()


def test_a_flipped_bit_in_the_spare_slot_does_not_matter(folder):
    make(folder, 1, 2)
    flip_on_disk(folder / "pages" / "00001.a", 30_000)
    assert found(folder) == 2


def test_damaged_buffers_are_corrupt(folder):
    make(folder, 1)
    store = opened(folder)
    path = folder / store.manifest["buffers"]["file"]
    flip_on_disk(path, 5)
    with pytest.raises(StoreCorrupt, match=rf"{path.name} is damaged \(checksum mismatch\)"):
        store.read_buffers()
    os.truncate(path, 3)
    with pytest.raises(StoreCorrupt, match="is damaged"):
        store.read_buffers()
    path.write_bytes(bytes(1000))
    with pytest.raises(StoreCorrupt, match="has 1000 bytes, at most 10 are expected"):
        store.read_buffers()
    path.unlink()
    with pytest.raises(StoreCorrupt, match="is missing"):
        store.read_buffers()
    store.close()


def test_a_damaged_manifest_is_refused_and_leaves_no_lock(folder):
    make(folder, 1)
    flip_on_disk(folder / "manifest.json", 200)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=r"manifest.json is damaged \(checksum mismatch\): restore it"):
            Store(folder)


@pytest.mark.parametrize(
    ("region", "text"),
    [("param", None), ("param", "AAAA"), ("param", "?"), ("exp_avg", None), ("exp_avg", "A" * 64)],
)
def test_a_manifest_without_good_checksums_is_refused(folder, region, text):
    make(folder, 1)
    _, line = (folder / "manifest.json").read_bytes().split(b"\n")
    body = json.loads(line)
    body["pages"][1]["sums"][region] = text
    if text is None:
        del body["pages"][1]["sums"][region]
    line = json.dumps(body).encode()
    header = json.dumps({"format": 1, "checksum": checksum(line)}).encode()
    (folder / "manifest.json").write_bytes(header + b"\n" + line)
    with pytest.raises(StoreCorrupt, match=f"the manifest has no good checksums for {region} of layer1"):
        opened(folder)


# --- another model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (SPECS[:2], "holds 3 pages, this model makes 2. Give the model, optimizer and layers it was made with"),
        ([SPECS[0], spec(1, 5001), SPECS[2]], r"holds page 'layer1' as 1.w\[5000\] as float32 .* this model makes"),
        ([SPECS[0], spec(1, 5000, moments=torch.bfloat16), SPECS[2]], "exp_avg of 20,480 bytes.*exp_avg of 12,288"),
        ([SPECS[0], spec(1, 5000, trainable=False), SPECS[2]], "this model makes 'layer1'"),
    ],
)
def test_the_state_of_another_model_is_refused_unharmed(folder, other, message):
    make(folder, 1)
    store = Store(folder)
    with pytest.raises(StoreError, match=message):
        store.attach(other)
    store.close()
    assert found(folder) == 1


# --- a full, broken or hanging disk -----------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_refused_before_anything_is_made(folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StoreFull, match=r"making room for 139,264 bytes of pages in .*/pages \(1,000 bytes are free\)"):
        opened(folder)
    assert not list((folder / "pages").iterdir())


@pytest.mark.parametrize("kind", ["open", "allocate", "write", "sync", "rename", "sync_folder"])
@pytest.mark.parametrize(("number", "error"), [(ENOSPC, StoreFull), (EIO, StoreIOError)])
@pytest.mark.parametrize("skip", [0, 1, 4])
def test_an_error_anywhere_stops_and_the_next_process_goes_on(folder, kind, number, error, skip):
    rule = Rule(kind, "*", fail(number), skip=skip, times=1)
    committed = [0]
    with pytest.raises(error, match=r"The last committed step is whole|Nothing is lost"):
        train(folder, FaultyFiles(rule), committed)
    if committed[-1]:
        assert found(folder) in (committed[-1], committed[-1] + 1)
    make(folder, 9)
    assert found(folder) == 9


def test_a_commit_that_failed_for_want_of_space_can_be_tried_again(folder):
    """The second attempt must not overwrite the buffers that the manifest in force names."""
    rule = Rule("write", "manifest.json.new", fail(ENOSPC), skip=1)
    store = opened(folder, files=FaultyFiles(rule))
    step(store, 1)
    for _ in range(3):
        with pytest.raises(StoreFull, match=f"committing {folder}/manifest.json"):
            step(store, 2)
        (folder / "manifest.json").read_bytes()
        before = store.manifest["buffers"]
        assert checksum((folder / before["file"]).read_bytes()) == before["checksum"]
    rule.kind = "nothing"
    step(store, 2)
    store.close()
    assert found(folder) == 2


@pytest.mark.parametrize(
    ("kind", "path", "culprit"),
    [
        ("sync", "pages/00001.b", r"flushing .*/pages/00001.b has not finished in 0.2 s: the disk or its driver hangs"),
        ("sync", "manifest.json.new", "committing to .*/store has not finished"),
        ("write", "buffers-1.bin.new", r"writing .*/buffers-1.bin has not finished"),
        ("rename", "manifest.json", "committing to .*/store has not finished"),
    ],
)
def test_a_hanging_disk_is_named_in_bounded_time_and_keeps_the_lock(folder, kind, path, culprit):
    make(folder, 1)
    hang = Hang()
    store = opened(folder, files=FaultyFiles(Rule(kind, path, hang)), timeout_s=0.2)
    with pytest.raises(StoreTimeout, match=culprit):
        step(store, 2)
    store.close()
    # The request may yet be carried out: nobody else may write here before.
    with pytest.raises(StoreLocked, match="in use by this process"):
        Store(folder)
    hang.release()
    store.close()
    assert found(folder) in (1, 2)


def test_a_hanging_read_is_named(folder):
    make(folder, 1)
    hang = Hang()
    store = opened(folder, files=FaultyFiles(Rule("read", "pages/*", hang)), timeout_s=0.2)
    with pytest.raises(StoreTimeout, match=r"reading layer0 has not finished in 0.2 s"):
        read_page(store, store.pages[0])
    hang.release()
    store.close()


def test_a_folder_that_may_not_be_written_is_an_error_that_says_so(folder):
    folder.mkdir()
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:  # whom no mode stops
            for parent in list(folder.parents)[:3]:
                parent.chmod(0o755)
            os.seteuid(65534)
        with pytest.raises(StoreIOError, match=f"opening the store {folder} failed: Permission denied. Give the run a"):
            Store(folder)
        with pytest.raises(StoreIOError, match="opening the store"):
            Store(folder / "inner")
    finally:
        os.seteuid(user)


def test_a_file_in_place_of_the_folder(folder):
    folder.write_text("not a store")
    with pytest.raises(StoreIOError, match=r"opening the store .* failed: Not a directory"):
        Store(folder)


# --- two processes ----------------------------------------------------------------------------------------------------


def test_two_processes_on_one_store(folder):
    code = "import sys, time; from openwafer.streaming.store import Store; s = Store(sys.argv[1]); print(1, flush=True)"
    other = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(99)", folder], stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(StoreLocked, match=f"{folder} is in use by process {other.pid}"):
            Store(folder)
    finally:
        other.kill()
        other.communicate()
    make(folder, 1)


# --- snapshots --------------------------------------------------------------------------------------------------------


def snapshot(folder: Path, name: str) -> None:
    store = opened(folder)
    store.snapshot(name)
    store.close()


def restored(folder: Path, name: str) -> int:
    """What is found once a snapshot was restored."""
    Store(folder, restore=name).close()
    return found(folder)


def test_a_snapshot_keeps_its_bits_while_training_goes_on(folder):
    store = opened(folder)
    step(store, 1)
    place = store.snapshot("first")
    kept = {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert (place / "pages" / "00000.a").stat().st_ino == (folder / "pages" / "00000.a").stat().st_ino
    for value in (2, 3, 4):
        step(store, value)
        assert contents(store) == value
    assert {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()} == kept
    store.close()
    assert found(folder) == 4
    assert restored(folder, "first") == 1
    assert {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()} == kept


def test_training_goes_on_from_a_restored_snapshot_and_it_can_be_restored_again(folder):
    make(folder, 1)
    snapshot(folder, "first")
    make(folder, 2)
    snapshot(folder, "second")
    for name, value in (("first", 1), ("first", 1), ("second", 2), ("first", 1)):
        assert restored(folder, name) == value
        make(folder, 5, 6, 7)
        assert found(folder) == 7
    assert restored(folder, "second") == 2


def test_the_frozen_page_comes_back_too(folder):
    make(folder, 1)
    snapshot(folder, "first")
    shutil.copy(folder / "snapshots/first/pages/00002.a", folder / "x")  # as after a copy of the whole store
    os.replace(folder / "x", folder / "pages" / "00002.a")
    assert restored(folder, "first") == 1
    store = opened(folder)
    assert read_page(store, store.pages[2]) == {1}
    assert store.pages[2].current == "b"
    store.close()
    make(folder, 2)
    assert found(folder) == 2


def test_snapshots_where_there_are_no_hard_links(folder):
    make(folder, 1)
    store = opened(folder, files=FaultyFiles(Rule("link", "*", fail(1))))
    place = store.snapshot("first")
    store.close()
    assert (place / "pages" / "00000.a").stat().st_nlink == 1
    make(folder, 2, 3)
    Store(folder, restore="first", files=FaultyFiles(Rule("link", "*", fail(1)))).close()
    assert found(folder) == 1


def test_names_of_snapshots(folder):
    store = opened(folder)
    with pytest.raises(StoreError, match="no committed state to snapshot: commit a step first"):
        store.snapshot("first")
    step(store, 1)
    for name in ("", ".", "..", "../x", "a/b", ".hidden", "a b", "a\n", "-x", "é"):
        with pytest.raises(StoreError, match="is no name for a snapshot: use letters, digits"):
            store.snapshot(name)
    store.snapshot("first")
    store.snapshot("run_1.step-2")
    with pytest.raises(StoreError, match=f"snapshot 'first' exists in {folder}: choose another name or remove"):
        store.snapshot("first")
    store.close()
    with pytest.raises(StoreError, match=f"{folder} has no snapshot 'last'; it has: first, run_1.step-2"):
        Store(folder, restore="last")
    with pytest.raises(StoreError, match=r"'../first' is no name"):
        Store(folder, restore="../first")
    assert found(folder) == 1


def test_a_snapshot_mends_a_damaged_manifest_and_damaged_pages(folder, caplog):
    make(folder, 1)
    snapshot(folder, "first")
    make(folder, 2)
    (folder / "manifest.json").write_text("gone")
    flip_on_disk(folder / "pages" / "00001.b", 0)
    with pytest.raises(StoreCorrupt):
        Store(folder)
    with caplog.at_level(logging.WARNING, "openwafer"):
        assert restored(folder, "first") == 1
    assert "snapshot 'first' takes its place" in caplog.text


def test_a_snapshot_that_is_not_whole_is_refused_and_changes_nothing(folder):
    make(folder, 1)
    snapshot(folder, "first")
    make(folder, 2)
    place = folder / "snapshots" / "first"
    buffers = next(place.glob("buffers-*"))
    flip_on_disk(buffers, 0)
    with pytest.raises(StoreCorrupt, match=r"buffers-\d.bin is damaged"):
        Store(folder, restore="first")
    (place / "pages" / "00001.a").unlink()
    with pytest.raises(StoreCorrupt, match=r"snapshot 'first' is not whole: .*00001.a is missing"):
        Store(folder, restore="first")
    flip_on_disk(place / "manifest.json", 100)
    with pytest.raises(StoreCorrupt, match=r"snapshots/first/manifest.json is damaged"):
        Store(folder, restore="first")
    assert found(folder) == 2


@pytest.mark.parametrize("losing", [False, True], ids=["killed", "power"])
def test_death_at_any_operation_of_a_snapshot_leaves_the_store_and_the_name_free(folder, losing):
    make(folder, 1)
    for operation in range(100):
        layer = FaultyFiles(losing=losing, seed=operation)
        store = opened(folder, files=layer)
        layer.crash_at = len(layer.operations) + operation
        try:
            store.snapshot("first")
            survived = True
        except Crash:
            survived = False
        store.close()
        layer.power_off()
        shutil.rmtree(folder.with_name("store.attic"), ignore_errors=True)
        assert found(folder) == 1
        if survived:
            break
        whole = (folder / "snapshots" / "first").exists()
        if whole:
            shutil.copytree(folder, folder.with_name("copy"), copy_function=os.link)
            shutil.rmtree(folder.with_name("copy"))
            assert restored(folder, "first") == 1
            shutil.rmtree(folder / "snapshots" / "first")
    assert 10 < operation < 99
    assert restored(folder, "first") == 1


@pytest.mark.parametrize("losing", [False, True], ids=["killed", "power"])
def test_death_at_any_operation_of_a_restoration_leaves_one_state_or_the_other(folder, losing):
    make(folder, 1)
    snapshot(folder, "first")
    for operation in range(100):
        make(folder, 2 + operation % 2)
        layer = FaultyFiles(crash_at=operation, losing=losing, seed=operation)
        try:
            Store(folder, restore="first", files=layer).close()
            survived = True
        except Crash:
            survived = False
        layer.power_off()
        shutil.rmtree(folder.with_name("store.attic"), ignore_errors=True)
        assert found(folder) in ((1,) if survived else (1, 2 + operation % 2))
        if survived:
            break
    assert 10 < operation < 99


@pytest.mark.parametrize("kind", ["open", "write", "sync", "rename", "link", "sync_folder"])
def test_errors_while_a_snapshot_is_made_or_restored(folder, kind):
    make(folder, 1)
    store = opened(folder, files=FaultyFiles())
    store.files.rules.append(Rule(kind, "*", fail(ENOSPC), skip=1))
    with pytest.raises(StoreFull, match="no space left while"):
        store.snapshot("first")
    store.close()
    shutil.rmtree(folder / "snapshots" / "first", ignore_errors=True)
    snapshot(folder, "first")
    make(folder, 2)
    with pytest.raises(StoreFull, match="no space left while"):
        Store(folder, restore="first", files=FaultyFiles(Rule(kind, "*", fail(ENOSPC), skip=1)))
    assert found(folder) in (1, 2)
    assert restored(folder, "first") == 1


def test_a_linked_slot_that_cannot_be_renewed_keeps_its_file(folder):
    """Full disk at the first write after a snapshot: the store closes cleanly and is taken up again."""
    store = opened(folder, files=FaultyFiles(Rule("allocate", "*.new", fail(ENOSPC))))
    step(store, 1)
    store.snapshot("first")
    step(store, 2)
    with pytest.raises(StoreFull, match=r"creating .*/00000.a.new"):
        step(store, 3)
    store.close()
    assert found(folder) == 2
    assert restored(folder, "first") == 1


# --- what is not ours -------------------------------------------------------------------------------------------------


def test_other_files_in_the_folder_are_left_alone(folder):
    make(folder, 1)
    (folder / "manifest.json").unlink()
    strangers = [folder / "notes.txt", folder / "pages" / "notes.txt", folder / "pages" / "00000.c"]
    for path in strangers:
        path.write_text("mine")
    make(folder, 2)
    assert [path.read_text() for path in strangers] == ["mine"] * 3


def test_snapshots_survive_a_store_that_begins_anew(folder):
    make(folder, 1)
    snapshot(folder, "first")
    (folder / "manifest.json").unlink()
    make(folder, 2)
    assert found(folder) == 2
    assert restored(folder, "first") == 1


def test_requests_run_beside_each_other(folder):
    """Several reads are in flight at once, off the calling thread."""
    make(folder, 1)
    together = threading.Barrier(3, timeout=10)
    layer = FaultyFiles(Rule("read", "pages/*", lambda operation: together.wait() and None))
    store = opened(folder, files=layer)
    page = store.pages[0]
    buffers = [Buffer(page.spec.param_bytes) for _ in range(3)]
    for future in [store.read(page, 0, 0, buffer.bytes) for buffer in buffers]:
        store.io.wait(future, "reading")
    store.close()


def test_the_order_of_a_commit(folder):
    """Pages are on the device, then their names, then the buffers, then the manifest."""
    layer = FaultyFiles()
    store = opened(folder, files=layer)
    for page in store.pages:
        write_page(store, page, 1)
    del layer.operations[:]
    store.commit({"step": 1}, b"x")
    store.close()

    def place(kind: str, name: str) -> list[int]:
        return [n for n, o in enumerate(layer.operations) if (o.kind, o.path.name) == (kind, name)]

    pages = [*place("sync", "00000.a"), *place("sync", "00001.a"), *place("sync", "00002.a")]
    order = [
        max(pages),
        *place("sync_folder", "pages"),
        *place("sync", "buffers-0.bin.new"),
        *place("rename", "buffers-0.bin"),
        *place("sync", "manifest.json.new"),
        *place("rename", "manifest.json"),
        place("sync_folder", "store")[-1],
    ]
    assert len(pages) == 3
    assert len(order) == 7
    assert order == sorted(order)


def test_operations_are_what_they_say():
    """The fake keeps its own promise: frozen records, numbered."""
    operation = Operation(0, "read", Path("x"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.number = 1  # type: ignore[misc]
    assert isinstance(FaultyFiles(), FileLayer)
