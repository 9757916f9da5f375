"""The store: a folder that is at once the working state of a run and its checkpoint.

Every page has two slots, a file each. The manifest names, for every page, the slot that holds the last committed
state, with the checksum of every chunk. New state is written to the other slot and becomes durable when a new
manifest replaces the old one (write, fsync, rename, fsync of the folder); until then the old slot is not touched.
A snapshot is a copy of the manifest with hard links to the slots it names: a slot with a second link is never
written, a fresh file takes its place. Without a path the store holds nothing on disk and survives nothing.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import OpenwaferError, StoreCorrupt, StoreError
from openwafer.streaming import manifest as manifests
from openwafer.streaming.files import FileLayer, IOEngine, PageFile, checksum, store_error
from openwafer.streaming.lock import Lock
from openwafer.streaming.manifest import BUFFERS, SLOTS, other, page_file, read_manifest, write_manifest
from openwafer.streaming.page import PageSpec

log = logging.getLogger("openwafer")

MANIFEST = "manifest.json"


class Slot:
    """One of the two places of a page on disk, with the checksum of every chunk in it."""

    def __init__(self, file: PageFile, spec: PageSpec):
        self.file = file
        self.sums = {region.name: np.zeros(region.num_chunks, dtype=np.uint64) for region in spec.regions}


class StoredPage:
    """The slots of one page: `current` holds the newest state, `durable` the last committed one."""

    def __init__(self, spec: PageSpec, slots: dict[str, Slot]):
        self.spec = spec
        self.slots = slots
        self.current = "a"
        self.durable: str | None = None

    @property
    def source(self) -> Slot:
        return self.slots[self.current]

    @property
    def target_name(self) -> str:
        """Where new state goes: never over the committed slot."""
        if self.durable == self.current and len(self.slots) > 1:
            return other(self.current, SLOTS)
        return self.current


class Store:
    """A run's state on disk; `Store(None)` keeps it in memory alone.

    Args:
        path: folder of the store, made if it is not there.
        restore: name of a snapshot to make the committed state, even if the manifest in force is damaged.
        files: what to use in place of the operating system's files.
        timeout_s: how long one request to the disk may take.

    Raises:
        StoreLocked: another process has the store open.
        StoreCorrupt: the manifest is damaged or of another format.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        restore: str | None = None,
        files: FileLayer | None = None,
        timeout_s: float = 300.0,
    ):
        self.path = None if path is None else Path(path).absolute()
        self.files = files or FileLayer()
        self.io = IOEngine(self.files, timeout_s=timeout_s)
        self.pages: list[StoredPage] = []
        self.manifest: dict[str, Any] | None = None
        self._lock: Lock | None = None
        self._new_names = False
        if self.path is not None:
            self._open(self.path, restore)

    def _open(self, path: Path, restore: str | None) -> None:
        try:
            if not path.exists():
                path.mkdir(parents=True, exist_ok=True)
                self.files.sync_folder(path.parent)
            self._lock = Lock(path / "lock")
        except OSError as error:
            raise store_error(error, f"opening the store {path}") from error
        try:
            try:
                self.manifest = read_manifest(self.files, path / MANIFEST)
            except StoreCorrupt as error:
                if restore is None:
                    raise
                log.warning("%s: snapshot %r takes its place", error, restore)
            if restore is not None:
                self.restore(restore)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the files and the lock; what was not committed is gone.

        If a request to the disk still hangs, both are kept until the process ends: it may yet be carried out.
        """
        if not self.io.close():
            return
        self._close_pages()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close_pages(self) -> None:
        for page in self.pages:
            for slot in page.slots.values():
                slot.file.close()
        self.pages = []

    @property
    def root(self) -> Path:
        assert self.path is not None
        return self.path

    # --- commit ---------------------------------------------------------------------------------------------------

    def commit(self, state: Mapping[str, Any], buffers: bytes | None) -> None:
        """Make the current slots and `state` (JSON) durable, all or nothing.

        Args:
            buffers: model buffers, raw; None keeps those of the last commit.
        """
        if self.path is None:
            return
        self._sync_pages(self.path / "pages")
        entry = None if self.manifest is None else self.manifest["buffers"]
        if buffers is not None:
            entry = self._write_buffers(buffers)
        body = {
            "pages": [self._page_entry(number, page) for number, page in enumerate(self.pages)],
            "buffers": entry,
            "state": dict(state),
        }
        self._bounded(f"committing to {self.path}", write_manifest, self.files, self.path / MANIFEST, body)
        self.manifest = body
        for page in self.pages:
            page.durable = page.current

    def _sync_pages(self, folder: Path) -> None:
        """Everything that new state was written to is on the device, and its name too."""
        changed = [page for page in self.pages if page.durable != page.current]
        calls = [
            (page, self.io.call(f"flushing {page.source.file.path}", self.files.sync, page.source.file.fd))
            for page in changed
        ]
        for page, call in calls:
            self.io.wait(call, f"flushing {page.source.file.path}")
        if self._new_names:
            self._bounded(f"flushing {folder}", self.files.sync_folder, folder)
            self._new_names = False

    def _write_buffers(self, buffers: bytes) -> dict[str, Any]:
        """Write the buffers beside those of the last commit."""
        last = None if self.manifest is None else self.manifest["buffers"]
        name = BUFFERS[0] if last is None else other(last["file"], BUFFERS)
        path = self.root / name
        self._bounded(f"writing {path}", self.files.write_whole, path, buffers)
        return {"file": name, "bytes": len(buffers), "checksum": checksum(buffers)}

    def _bounded(self, doing: str, function: Any, *args: Any) -> Any:
        """Run something that may hang; StoreTimeout if it does."""
        return self.io.wait(self.io.call(doing, function, *args), doing)

    def _page_entry(self, number: int, page: StoredPage) -> dict[str, Any]:
        return {
            "name": page.spec.name,
            "layout": _describe(page.spec),
            "file": page_file(number, page.current),
            "slot": page.current,
            "sums": {name: manifests.encode_sums(sums) for name, sums in page.source.sums.items()},
        }

    def read_buffers(self) -> bytes | None:
        """The model buffers of the last commit, raw."""
        entry = None if self.manifest is None else self.manifest["buffers"]
        return None if entry is None else self._read_buffers(self.root / entry["file"], entry)

    def _read_buffers(self, path: Path, entry: Mapping[str, Any]) -> bytes:
        try:
            data = self.files.read_whole(path, entry["bytes"])
        except FileNotFoundError as error:
            raise StoreCorrupt(f"{path} is missing: {manifests.ADVICE}") from error
        except OSError as error:
            raise store_error(error, f"reading {path}") from error
        if len(data) != entry["bytes"] or checksum(data) != entry["checksum"]:
            raise StoreCorrupt(f"{path} is damaged (checksum mismatch): {manifests.ADVICE}")
        return data

    # --- pages ----------------------------------------------------------------------------------------------------

    def attach(self, specs: Sequence[PageSpec]) -> bool:
        """Open or create the files of all pages; True when a committed state was found for them.

        Raises:
            StoreError: the committed state belongs to another model, optimizer or partition.
            StoreFull: there is no room for the pages.
        """
        if self.path is None:
            return False
        if self.pages or self._lock is None:
            raise StoreError(f"{self.path} is {'in use by another job' if self.pages else 'closed'}: open a new Store")
        entries = None if self.manifest is None else self.manifest["pages"]
        if entries is not None:
            self._compare(specs, entries)
        folder = self.path / "pages"
        try:
            folder.mkdir(exist_ok=True)
            self.files.sync_folder(self.path)
            self._sweep(folder, 0 if entries is None else len(entries))
        except OSError as error:
            raise store_error(error, f"creating {folder}") from error
        self._require_room(specs, folder)
        self._new_names = True
        try:
            for number, spec in enumerate(specs):
                self._attach_page(number, spec, None if entries is None else entries[number])
        except BaseException:
            self._close_pages()
            raise
        return entries is not None

    def _sweep(self, folder: Path, num_pages: int) -> None:
        """Remove page files that no commit names: an attempt that died before its first, perhaps of another model."""
        for path in folder.iterdir():
            if manifests.is_page_file(path.name) and (path.suffix == ".new" or int(path.stem) >= num_pages):
                self.files.unlink(path)

    def _attach_page(self, number: int, spec: PageSpec, entry: Mapping[str, Any] | None) -> None:
        current = SLOTS[0] if entry is None else entry["slot"]
        page = StoredPage(spec, {})
        self.pages.append(page)  # at once: should one of its files fail, `close` closes the other
        for name in SLOTS if spec.trainable else (current,):
            committed = entry is not None and name == current
            path = self.root / "pages" / page_file(number, name)
            if not committed:
                self._clear_short(path, spec.slot_bytes)
            page.slots[name] = Slot(PageFile(self.files, path, spec.slot_bytes, create=not committed), spec)
        page.current = current
        if entry is None:
            return
        page.durable = current
        for region in spec.regions:
            try:
                page.source.sums[region.name] = manifests.decode_sums(entry["sums"][region.name], region.num_chunks)
            except (KeyError, ValueError) as error:
                raise StoreCorrupt(
                    f"{self.path}: the manifest has no good checksums for {region.name} of {spec.name} ({error}); "
                    + manifests.ADVICE
                ) from error

    def _clear_short(self, path: Path, num_bytes: int) -> None:
        """A file that death left shorter than it should be is made anew, never grown: a snapshot may share it."""
        try:
            if path.exists() and path.stat().st_size < num_bytes:
                self.files.unlink(path)
        except OSError as error:
            raise store_error(error, f"removing {path}") from error

    def _require_room(self, specs: Sequence[PageSpec], folder: Path) -> None:
        needed = sum(spec.slot_bytes * (2 if spec.trainable else 1) for spec in specs)
        present = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
        free = shutil.disk_usage(folder).free
        if needed - present > free:
            raise store_error(
                OSError(errno.ENOSPC, f"{free:,} bytes are free"),
                f"making room for {needed - present:,} bytes of pages in {folder}",
            )

    def _compare(self, specs: Sequence[PageSpec], entries: Sequence[Mapping[str, Any]]) -> None:
        hint = "Give the model, optimizer and layers it was made with, or use another store."
        if len(specs) != len(entries):
            raise StoreError(f"{self.path} holds {len(entries)} pages, this model makes {len(specs)}. {hint}")
        for spec, entry in zip(specs, entries, strict=True):
            if entry["layout"] != _describe(spec):
                raise StoreError(
                    f"{self.path} holds page {entry['name']!r} as {entry['layout']}, "
                    f"this model makes {spec.name!r} as {_describe(spec)}. {hint}"
                )

    def zero_state(self, page: StoredPage) -> None:
        """Note the checksums of a fresh slot's optimizer state, which is zeros and was never written."""
        for region in page.spec.regions[1:]:
            sums = page.source.sums[region.name]
            for chunk in range(region.num_chunks):
                start, stop = region.chunk_range(chunk)
                sums[chunk] = _zero_checksum(stop - start)

    def turn(self, page: StoredPage) -> Slot:
        """The slot that new state of a page goes to, ready to be written (never a linked or committed file)."""
        slot = page.slots[page.target_name]
        if slot.file.num_links > 1:
            self._bounded(f"replacing {slot.file.path}", self._renew, slot, page.spec.slot_bytes)
        return slot

    def _renew(self, slot: Slot, num_bytes: int) -> None:
        path = slot.file.path
        fresh = PageFile(self.files, path.with_name(path.name + ".new"), num_bytes, create=True)
        try:
            self.files.rename(fresh.path, path)
        except BaseException:
            fresh.close()
            raise
        fresh.path = path
        slot.file.close()
        slot.file = fresh
        self._new_names = True

    def read(self, page: StoredPage, region: int, chunk: int, buffer: memoryview) -> Future[None]:
        """Read one chunk of a region of the current slot into `buffer`."""
        where = page.spec.regions[region]
        start, _ = where.chunk_range(chunk)
        slot = page.source
        return self.io.read(slot.file, buffer, where.offset + start, int(slot.sums[where.name][chunk]))

    def write(self, slot: Slot, spec: PageSpec, region: int, chunk: int, buffer: memoryview) -> Future[int]:
        """Write one chunk of a region into `slot` and note its checksum."""
        where = spec.regions[region]
        start, _ = where.chunk_range(chunk)
        sums = slot.sums[where.name]
        return self.io.write(slot.file, buffer, where.offset + start, lambda digest: sums.__setitem__(chunk, digest))

    # --- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> Path:
        """Keep the last committed state under a name; costs a manifest and hard links.

        Raises:
            StoreError: nothing is committed yet, or the name is taken or not a plain name.
        """
        if self.path is None or self.manifest is None:
            raise StoreError("there is no committed state to snapshot: commit a step first, with a store on disk")
        folder = self._snapshot_folder(name)
        if folder.exists():
            raise StoreError(f"snapshot {name!r} exists in {self.path}: choose another name or remove {folder}")
        temporary = folder.with_name(f".{name}.new")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "pages").mkdir(parents=True)
            self._fill_snapshot(temporary, self.manifest)
            self.files.rename(temporary, folder)
            self.files.sync_folder(folder.parent)
            self.files.sync_folder(self.path)
        except (OSError, OpenwaferError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise store_error(error, f"making snapshot {name!r}") from error
            raise
        return folder

    def _snapshot_folder(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise StoreError(f"{name!r} is no name for a snapshot: use letters, digits, '-', '_' and '.'")
        return self.root / "snapshots" / name

    def _fill_snapshot(self, folder: Path, body: Mapping[str, Any]) -> None:
        for entry in body["pages"]:
            self.files.link_or_copy(self.root / "pages" / entry["file"], folder / "pages" / entry["file"])
        self.files.sync_folder(folder / "pages")
        buffers = body["buffers"]
        if buffers is not None:
            self.files.write_whole(folder / buffers["file"], self._read_buffers(self.root / buffers["file"], buffers))
        write_manifest(self.files, folder / MANIFEST, body)

    def restore(self, name: str) -> None:
        """Make a snapshot the committed state again, all or nothing; only before the pages are attached.

        Raises:
            StoreError: there is no such snapshot.
            StoreCorrupt: a file of the snapshot is missing or damaged.
        """
        assert not self.pages, "restore before the pages are attached"
        folder = self._snapshot_folder(name)
        body = read_manifest(self.files, folder / MANIFEST)
        if body is None:
            known = sorted(path.name for path in (self.root / "snapshots").glob("[!.]*"))
            raise StoreError(f"{self.path} has no snapshot {name!r}; it has: {', '.join(known) or 'none'}")
        try:
            (self.root / "pages").mkdir(exist_ok=True)
            body["pages"] = [self._restore_page(folder, n, entry) for n, entry in enumerate(body["pages"])]
            self.files.sync_folder(self.root / "pages")
        except FileNotFoundError as error:
            raise StoreCorrupt(f"snapshot {name!r} is not whole: {error.filename} is missing") from error
        except OSError as error:
            raise store_error(error, f"restoring snapshot {name!r}") from error
        if body["buffers"] is not None:
            buffers = body["buffers"]
            body["buffers"] = self._write_buffers(self._read_buffers(folder / buffers["file"], buffers))
        write_manifest(self.files, self.root / MANIFEST, body)
        self.manifest = body

    def _restore_page(self, folder: Path, number: int, entry: dict[str, Any]) -> dict[str, Any]:
        """Put a page of a snapshot where no committed state is: the manifest in force stays good."""
        source = folder / "pages" / entry["file"]
        committed = [] if self.manifest is None else self.manifest["pages"]
        slot = entry["slot"]
        if number < len(committed):
            slot = committed[number]["slot"]
            if os.path.samefile(source, self.root / "pages" / page_file(number, slot)):
                return {**entry, "slot": slot, "file": page_file(number, slot)}
            slot = other(slot, SLOTS)
        target = self.root / "pages" / page_file(number, slot)
        temporary = target.with_name(target.name + ".new")
        self.files.unlink(temporary)
        self.files.link_or_copy(source, temporary)
        self.files.rename(temporary, target)
        return {**entry, "slot": slot, "file": target.name}


@functools.cache
def _zero_checksum(num_bytes: int) -> int:
    return checksum(bytes(num_bytes))


def _describe(spec: PageSpec) -> str:
    """The layout of a page in one comparable line."""
    params = ", ".join(f"{param.name}{list(param.shape)}" for param in spec.params)
    regions = ", ".join(f"{region.name} of {region.num_bytes:,} bytes" for region in spec.regions)
    return f"{params} as {str(spec.dtype).removeprefix('torch.')} with {regions}"
