"""The store: a folder that is at once the working state of a run and its checkpoint.

Every page has two slots, a file each. The manifest names, for every page, the slot that holds the last committed
state, with the checksum of every chunk. New state is written to the other slot and becomes durable when a new
manifest replaces the old one (write, fsync, rename, fsync of the folder); until then the old slot is not touched.
A snapshot is a copy of the manifest with hard links to the slots it names: a slot with a second link is never
written, a fresh file takes its place. Without a path the store holds nothing on disk and survives nothing.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import StoreCorrupt, StoreError, StoreLocked
from openwafer.streaming.files import FileLayer, IOEngine, PageFile, checksum, store_error
from openwafer.streaming.page import PageSpec

log = logging.getLogger("openwafer")

FORMAT = 1
SLOTS = ("a", "b")


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
            return "b" if self.current == "a" else "a"
        return self.current


class Store:
    """A run's state on disk; `Store(None)` keeps it in memory alone.

    Raises:
        StoreLocked: another process has the store open.
        StoreCorrupt: the manifest is damaged or of another format.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, files: FileLayer | None = None):
        self.path = None if path is None else Path(path).absolute()
        self.files = files or FileLayer()
        self.io = IOEngine(self.files)
        self.pages: list[StoredPage] = []
        self.manifest: dict[str, Any] | None = None
        self._lock_fd: int | None = None
        self._buffers_turn = 0
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise store_error(error, f"opening the store {path}") from error
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._lock_fd, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock_fd)
            self._lock_fd = None
            raise StoreLocked(
                f"{path} is in use by process {owner}: one process at a time may write a store. "
                "Wait for it, stop it, or give this run another store."
            ) from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, str(os.getpid()).encode(), 0)
        self.manifest = self._read_manifest(path / "manifest.json")

    def close(self) -> None:
        """Release the files and the lock; what was not committed is gone."""
        self.io.close()
        for page in self.pages:
            for slot in page.slots.values():
                slot.file.close()
        self.pages = []
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @property
    def root(self) -> Path:
        assert self.path is not None
        return self.path

    # --- manifest -------------------------------------------------------------------------------------------------

    def _read_manifest(self, path: Path) -> dict[str, Any] | None:
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise store_error(error, f"reading {path}") from error
        try:
            envelope = json.loads(text)
            body = envelope["body"]
            whole = checksum(json.dumps(body, sort_keys=True).encode()) == envelope["checksum"]
            version = envelope["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreCorrupt(f"{path} is not a manifest ({error}): restore it from a snapshot or a copy") from error
        if version != FORMAT:
            raise StoreCorrupt(f"{path} has format {version}, this version reads {FORMAT}: use the version that wrote it")
        if not whole:
            raise StoreCorrupt(f"{path} is damaged (checksum mismatch): restore it from a snapshot or a copy")
        return body

    def _write_manifest(self, path: Path, body: Mapping[str, Any]) -> None:
        digest = checksum(json.dumps(body, sort_keys=True).encode())
        text = json.dumps({"format": FORMAT, "checksum": digest, "body": body}, sort_keys=True)
        try:
            self.files.write_whole(path, text.encode())
        except OSError as error:
            raise store_error(error, f"committing {path}") from error

    def commit(self, state: Mapping[str, Any], buffers: bytes | None) -> None:
        """Make the current slots and `state` (JSON) durable, all or nothing.

        Args:
            buffers: model buffers, raw; None keeps those of the last commit.
        """
        if self.path is None:
            return
        entry = None if self.manifest is None else self.manifest.get("buffers")
        try:
            for page in self.pages:
                if page.durable != page.current:
                    self.files.sync(page.source.file.fd)
            if buffers is not None:
                self._buffers_turn ^= 1
                name = f"buffers-{self._buffers_turn}.bin"
                self.files.write_whole(self.path / name, buffers)
                entry = {"file": name, "checksum": checksum(buffers)}
        except OSError as error:
            raise store_error(error, f"committing to {self.path}") from error
        body = {
            "pages": [self._page_entry(page) for page in self.pages],
            "buffers": entry,
            "state": dict(state),
        }
        self._write_manifest(self.path / "manifest.json", body)
        self.manifest = body
        for page in self.pages:
            page.durable = page.current

    def _page_entry(self, page: StoredPage) -> dict[str, Any]:
        return {
            "name": page.spec.name,
            "layout": _describe(page.spec),
            "file": page.source.file.path.name,
            "slot": page.current,
            "sums": {name: base64.b64encode(sums.tobytes()).decode() for name, sums in page.source.sums.items()},
        }

    def read_buffers(self) -> bytes | None:
        """The model buffers of the last commit, raw."""
        entry = None if self.manifest is None else self.manifest.get("buffers")
        if entry is None:
            return None
        path = self.root / entry["file"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise store_error(error, f"reading {path}") from error
        if checksum(data) != entry["checksum"]:
            raise StoreCorrupt(f"{path} is damaged (checksum mismatch): restore it from a snapshot or a copy")
        self._buffers_turn = int(entry["file"].removeprefix("buffers-").removesuffix(".bin"))
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
        entries = None if self.manifest is None else self.manifest["pages"]
        if entries is not None:
            self._compare(specs, entries)
        folder = self.path / "pages"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise store_error(error, f"creating {folder}") from error
        self._require_room(specs, folder)
        for number, spec in enumerate(specs):
            names = SLOTS if spec.trainable else SLOTS[:1]
            slots = {}
            for name in names:
                path = folder / f"{number:05d}.{name}"
                exists = entries is not None and path.exists()
                slots[name] = Slot(PageFile(self.files, path, spec.slot_bytes, create=not exists), spec)
            page = StoredPage(spec, slots)
            if entries is not None:
                page.current = page.durable = entries[number]["slot"]
                for region, text in entries[number]["sums"].items():
                    page.source.sums[region] = np.frombuffer(base64.b64decode(text), dtype=np.uint64).copy()
            self.pages.append(page)
        return entries is not None

    def _require_room(self, specs: Sequence[PageSpec], folder: Path) -> None:
        needed = sum(spec.slot_bytes * (2 if spec.trainable else 1) for spec in specs)
        present = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
        free = shutil.disk_usage(folder).free
        if needed - present > free:
            raise store_error(
                OSError(28, "No space left on device"),
                f"making room for {needed:,} bytes of pages in {folder} ({free:,} bytes are free)",
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
            path = slot.file.path
            slot.file.close()
            path.unlink()
            slot.file = PageFile(self.files, path, page.spec.slot_bytes, create=True)
        return slot

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
        future = self.io.write(slot.file, buffer, where.offset + start)
        sums = slot.sums[where.name]

        def note(done: Future[int]) -> None:
            if not done.cancelled() and done.exception() is None:
                sums[chunk] = done.result()

        future.add_done_callback(note)
        return future

    # --- snapshots ------------------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> Path:
        """Keep the last committed state under a name; costs a manifest and hard links.

        Raises:
            StoreError: nothing is committed yet, or the name is taken or not a plain name.
        """
        if self.path is None or self.manifest is None:
            raise StoreError("there is no committed state to snapshot: commit a step first, with a store on disk")
        if not name or name != os.path.basename(name) or name.startswith("."):
            raise StoreError(f"{name!r} is no name for a snapshot: use letters, digits, '-' and '_'")
        folder = self.path / "snapshots" / name
        if folder.exists():
            raise StoreError(f"snapshot {name!r} exists in {self.path}: choose another name or remove {folder}")
        temporary = folder.with_name(f".{name}.new")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "pages").mkdir(parents=True)
            for page in self.pages:
                assert page.durable is not None
                path = page.slots[page.durable].file.path
                _link(path, temporary / "pages" / path.name)
            if self.manifest.get("buffers"):
                shutil.copy2(self.path / self.manifest["buffers"]["file"], temporary)
            shutil.copy2(self.path / "manifest.json", temporary)
            self.files.replace(temporary, folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise store_error(error, f"making snapshot {name!r}") from error
        return folder

    def restore(self, name: str) -> None:
        """Make a snapshot the committed state again; only before the pages are attached."""
        assert not self.pages, "restore before the pages are attached"
        folder = self.root / "snapshots" / name
        manifest = self._read_manifest(folder / "manifest.json")
        if manifest is None:
            known = sorted(path.name for path in (self.root / "snapshots").glob("[!.]*"))
            raise StoreError(f"{self.path} has no snapshot {name!r}; it has: {', '.join(known) or 'none'}")
        try:
            for entry in manifest["pages"]:
                # The slot that is committed now must survive until the manifest names the restored one.
                restored = self.root / "pages" / (entry["file"] + ".restored")
                restored.unlink(missing_ok=True)
                _link(folder / "pages" / entry["file"], restored)
            for entry in manifest["pages"]:
                restored = self.root / "pages" / (entry["file"] + ".restored")
                self.files.replace(restored, self.root / "pages" / entry["file"])
            if manifest.get("buffers"):
                shutil.copy2(folder / manifest["buffers"]["file"], self.root)
        except OSError as error:
            raise store_error(error, f"restoring snapshot {name!r}") from error
        self._write_manifest(self.root / "manifest.json", manifest)
        self.manifest = manifest


@functools.cache
def _zero_checksum(num_bytes: int) -> int:
    return checksum(bytes(num_bytes))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _describe(spec: PageSpec) -> str:
    """The layout of a page in one comparable line."""
    params = ", ".join(f"{param.name}{list(param.shape)}" for param in spec.params)
    regions = ", ".join(region.name for region in spec.regions)
    return f"{params} as {str(spec.dtype).removeprefix('torch.')} with {regions}"
