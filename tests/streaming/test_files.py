"""Requests to the disk: whole, checked, bounded; and what is left when they fail."""

import errno
import logging
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from openwafer.base.errors import StoreCorrupt, StoreFull, StoreIOError, StoreTimeout
from openwafer.streaming.files import Buffer, FileLayer, IOEngine, PageFile, checksum, store_error
from tests.faults import EIO, ENOSPC, Crash, FaultyFiles, Hang, Rule, fail, flip, flip_on_disk, leaks

SIZE = 3 * 4096


@pytest.fixture(autouse=True)
def _no_leaks(tmp_path: Path):
    before = leaks(tmp_path)
    yield
    assert leaks(tmp_path) == before


class Disk:
    """An engine and one page file over a layer that obeys rules."""

    def __init__(self, folder: Path, *rules: Rule, timeout_s: float = 10.0):
        self.files = FaultyFiles(*rules)
        self.engine = IOEngine(self.files, timeout_s=timeout_s)
        self.file = PageFile(self.files, folder / "page", SIZE, create=True)
        self.buffer = Buffer(SIZE)
        self.buffer.tensor.random_(0, 256)

    def write(self) -> int:
        return self.engine.wait(self.engine.write(self.file, self.buffer.bytes, 0), "writing")

    def read(self, expected: int | None = None) -> bytes:
        into = Buffer(SIZE)
        self.engine.wait(self.engine.read(self.file, into.bytes, 0, expected), "reading")
        return bytes(into.bytes)

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.file.close()


# --- the layer --------------------------------------------------------------------------------------------------------


def test_a_small_file_is_replaced_whole_whenever_the_process_dies(tmp_path):
    path = tmp_path / "small"
    FileLayer().write_whole(path, b"old")
    for operation in range(20):
        layer = FaultyFiles(crash_at=operation, seed=operation)
        try:
            layer.write_whole(path, b"new")
            break
        except Crash:
            assert path.read_bytes() in (b"old", b"new")
    assert operation >= 4
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("seed", range(20))
def test_a_small_file_is_replaced_whole_whenever_the_power_fails(tmp_path, seed):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "lock").touch()
    path = tmp_path / "store" / "small"
    old, new = bytes(9000), b"\1" * 9500
    FileLayer().write_whole(path, old)
    layer = FaultyFiles(crash_at=seed % 6, seed=seed, losing=True)
    try:
        layer.write_whole(path, new)
        durable = True
    except Crash:
        durable = False
    layer.power_off()
    assert path.read_bytes() in ((new,) if durable else (old, new))


def test_a_file_larger_than_expected_is_not_read(tmp_path):
    (tmp_path / "small").write_bytes(bytes(100))
    assert FileLayer().read_whole(tmp_path / "small", 100) == bytes(100)
    with pytest.raises(StoreCorrupt, match="has 100 bytes, at most 99 are expected"):
        FileLayer().read_whole(tmp_path / "small", 99)


def test_without_hard_links_a_file_is_copied(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(5 << 20))
    layer = FaultyFiles(Rule("link", "*", fail(errno.EPERM)))
    layer.link_or_copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_nlink == 1
    assert "sync" in [operation.kind for operation in layer.operations]


def test_a_full_disk_is_no_reason_to_copy_instead_of_linking(tmp_path):
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(OSError, match="No space"):
        FaultyFiles(Rule("link", "*", fail(ENOSPC))).link_or_copy(tmp_path / "source", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_reading_past_the_end_says_where_it_is(tmp_path):
    (tmp_path / "short").write_bytes(bytes(10))
    fd = os.open(tmp_path / "short", os.O_RDONLY)
    with pytest.raises(EOFError, match="ends at 10"):
        FileLayer().pread(fd, memoryview(bytearray(20)), 0)
    os.close(fd)


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, StoreFull, "no space left while writing x .No space left on device.. Nothing is lost"),
        (errno.EDQUOT, StoreFull, "Free space on that file system and resume"),
        (errno.EIO, StoreIOError, "writing x failed: Input/output error. The last committed step is whole"),
        (errno.EROFS, StoreIOError, "Read-only file system. Give the run a folder that this process may write to"),
        (errno.EACCES, StoreIOError, "Permission denied. Give the run a folder"),
    ],
)
def test_errors_say_what_to_do(number, kind, message):
    with pytest.raises(kind, match=message):
        raise store_error(OSError(number, os.strerror(number)), "writing x")


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_buffer_is_bytes_and_tensor_at_once():
    buffer = Buffer(8192)
    assert buffer.tensor.data_ptr() % 4096 == 0
    assert not buffer.tensor.any()
    buffer.view(torch.float32, 1, 2).fill_(1.0)
    assert bytes(buffer.bytes[:12]) == bytes(4) + bytes.fromhex("0000803f") * 2
    assert Buffer(0).tensor.numel() == 0


# --- page files -------------------------------------------------------------------------------------------------------


def test_page_files_are_opened_for_direct_io_and_fall_back_where_there_is_none(tmp_path, monkeypatch):
    flags = []

    def refuse(self: FileLayer, path: Path, how: int) -> int:
        flags.append(how)
        if how & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return os.open(path, how, 0o644)

    monkeypatch.setattr(FileLayer, "open", refuse)
    file = PageFile(FileLayer(), tmp_path / "page", SIZE, create=True)
    file.close()
    assert [bool(how & os.O_DIRECT) for how in flags] == [True, False]
    assert (tmp_path / "page").stat().st_size == SIZE


def test_a_page_file_that_is_missing_or_short_is_corrupt(tmp_path):
    with pytest.raises(StoreCorrupt, match="page is missing: restore it"):
        PageFile(FileLayer(), tmp_path / "page", SIZE, create=False)
    (tmp_path / "page").write_bytes(bytes(SIZE - 1))
    with pytest.raises(StoreCorrupt, match=f"has {SIZE - 1} bytes, {SIZE} are needed: it was truncated"):
        PageFile(FileLayer(), tmp_path / "page", SIZE, create=False)


@pytest.mark.parametrize(("kind", "number", "error"), [("open", EIO, StoreIOError), ("allocate", ENOSPC, StoreFull)])
def test_a_page_file_that_cannot_be_made_leaves_nothing_open(tmp_path, kind, number, error):
    with pytest.raises(error, match=f"creating {tmp_path}/page .{SIZE} bytes."):
        PageFile(FaultyFiles(Rule(kind, "*", fail(number))), tmp_path / "page", SIZE, create=True)


def test_a_page_file_is_closed_once(tmp_path):
    file = PageFile(FileLayer(), tmp_path / "page", SIZE, create=True)
    file.close()
    other = os.open(tmp_path / "page", os.O_RDONLY)  # takes the same number
    file.close()
    os.fstat(other)
    os.close(other)


# --- requests ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_counted(tmp_path):
    with Disk(tmp_path) as disk:
        digest = disk.write()
        assert digest == checksum(disk.buffer.bytes)
        assert disk.read(digest) == bytes(disk.buffer.bytes)
        assert (disk.engine.bytes_read, disk.engine.bytes_written) == (SIZE, SIZE)


def test_the_checksum_is_noted_before_the_write_counts_as_done(tmp_path):
    with Disk(tmp_path) as disk:
        for _ in range(50):
            noted: list[int] = []
            future = disk.engine.write(disk.file, disk.buffer.bytes, 0, noted.append)
            digest = disk.engine.wait(future, "writing")
            assert noted == [digest]


@pytest.mark.parametrize(
    ("act", "reason"), [(flip, "checksum mismatch"), (fail(EIO), "input/output error")], ids=["flip", "EIO"]
)
def test_a_read_that_went_wrong_once_is_repeated(tmp_path, caplog, act, reason):
    with Disk(tmp_path, Rule("read", "*", act, times=1)) as disk, caplog.at_level(logging.WARNING, "openwafer"):
        digest = disk.write()
        assert disk.read(digest) == bytes(disk.buffer.bytes)
    assert caplog.messages == [f"{reason} at 0 of {tmp_path}/page: reading it once more"]


def test_a_read_that_goes_wrong_twice_is_not(tmp_path):
    with Disk(tmp_path, Rule("read", "*", fail(EIO))) as disk:
        disk.write()
        with pytest.raises(StoreIOError, match=f"reading {SIZE} bytes at 0 of {tmp_path}/page failed: Input/output"):
            disk.read()
        assert len([o for o in disk.files.operations if o.kind == "read"]) == 2


def test_a_flipped_bit_on_disk_is_found(tmp_path):
    with Disk(tmp_path) as disk:
        digest = disk.write()
        flip_on_disk(tmp_path / "page", 5000)
        with pytest.raises(StoreCorrupt, match=f"{SIZE} bytes at 0 of {tmp_path}/page are not what was written"):
            disk.read(digest)
        assert disk.read(None) != bytes(disk.buffer.bytes)


def test_a_file_that_was_truncated_under_way_is_corrupt(tmp_path):
    with Disk(tmp_path) as disk:
        disk.write()
        os.truncate(tmp_path / "page", 4096)
        with pytest.raises(StoreCorrupt, match="are missing, the file ends at 4096: it was truncated"):
            disk.read()


@pytest.mark.parametrize(("number", "error"), [(ENOSPC, StoreFull), (EIO, StoreIOError)])
def test_a_write_is_not_repeated(tmp_path, number, error):
    rule = Rule("write", "*", fail(number), times=1)
    with Disk(tmp_path, rule) as disk, pytest.raises(error, match=f"writing {SIZE} bytes at 0 of {tmp_path}/page"):
        disk.write()


def test_other_calls_fail_as_requests_do(tmp_path):
    with Disk(tmp_path, Rule("sync", "*", fail(EIO))) as disk:
        future = disk.engine.call("flushing the page", disk.files.sync, disk.file.fd)
        with pytest.raises(StoreIOError, match="flushing the page failed: Input/output error"):
            disk.engine.wait(future, "flushing")
        assert disk.engine.wait(disk.engine.call("adding", lambda a, b: a + b, 1, 2), "adding") == 3


def test_a_hanging_disk_is_named_and_left_behind(tmp_path, caplog):
    hang = Hang()
    disk = Disk(tmp_path, Rule("read", "*", hang), timeout_s=0.1)
    disk.write()
    with pytest.raises(StoreTimeout, match=r"reading layers.3 has not finished in 0.1 s: the disk or its driver hangs"):
        disk.engine.wait(disk.engine.read(disk.file, Buffer(SIZE).bytes, 0, None), "reading layers.3")
    with caplog.at_level(logging.WARNING, "openwafer"):
        assert not disk.engine.close()
    assert "a request to the disk still hangs" in caplog.text
    hang.release()
    assert disk.engine.close()
    disk.file.close()


def test_closing_drops_what_has_not_begun(tmp_path):
    hang = Hang()
    disk = Disk(tmp_path, Rule("read", "*", hang))
    futures = [disk.engine.read(disk.file, Buffer(SIZE).bytes, 0, None) for _ in range(20)]
    hang.met.wait(10)
    closing = threading.Thread(target=disk.engine.close)
    closing.start()
    deadline = time.monotonic() + 10
    while sum(future.cancelled() for future in futures) < 16 and time.monotonic() < deadline:
        time.sleep(0.001)  # four threads have one each
    hang.release()
    closing.join(10)
    assert sum(future.cancelled() for future in futures) >= 16
    assert disk.engine.close()
    disk.file.close()


def test_an_engine_that_was_never_used_has_no_threads():
    engine = IOEngine(FileLayer())
    assert not [t for t in threading.enumerate() if t.name.startswith("openwafer-io")]
    assert engine.close()
    assert engine.close()
