"""The manifest: the one small file that says which state of a store is committed.

Two lines: a header (JSON: format, checksum of the second line) and the body (JSON: pages, buffers, state). What is
read is checked before it is believed: no name in it can lead out of the store, whoever wrote it. The meaning of
`state` is the caller's.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import StoreCorrupt, StoreError
from openwafer.streaming.files import FileLayer, checksum, store_error

FORMAT = 1
MOST_BYTES = 1 << 28
SLOTS = ("a", "b")
BUFFERS = ("buffers-0.bin", "buffers-1.bin")
ADVICE = "restore it from a snapshot or a copy"


def page_file(number: int, slot: str) -> str:
    """The name of the file of a page's slot."""
    return f"{number:05d}.{slot}"


def is_page_file(name: str) -> bool:
    return re.fullmatch(r"\d{5,}\.[ab](\.new)?", name) is not None


def other(value: str, pair: tuple[str, str]) -> str:
    """The one of two that is not `value`."""
    return pair[1] if value == pair[0] else pair[0]


def write_manifest(files: FileLayer, path: Path, body: Mapping[str, Any]) -> None:
    """Replace the manifest, durably and at once.

    Raises:
        StoreError: the body is not JSON, or the disk failed.
    """
    try:
        line = json.dumps(body).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"the state to commit is not JSON: {error}") from error
    if len(line) > MOST_BYTES - 4096:
        raise StoreError(f"the state to commit takes {len(line):,} bytes as JSON, at most {MOST_BYTES - 4096:,} may be")
    header = json.dumps({"format": FORMAT, "checksum": checksum(line)}).encode()
    try:
        files.write_whole(path, header + b"\n" + line)
    except OSError as error:
        raise store_error(error, f"committing {path}") from error


def read_manifest(files: FileLayer, path: Path) -> dict[str, Any] | None:
    """The body of the manifest; None if there is none.

    Raises:
        StoreCorrupt: it is damaged, of another format, or not what this program writes.
    """
    try:
        data = files.read_whole(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise store_error(error, f"reading {path}") from error
    header, _, line = data.partition(b"\n")
    version, digest = _header(header, path)
    if version != FORMAT:
        raise StoreCorrupt(f"{path} has format {version!r}, this version reads {FORMAT}: use the version that wrote it")
    if checksum(line) != digest:
        raise StoreCorrupt(f"{path} is damaged (checksum mismatch): {ADVICE}")
    try:
        body = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path} is not a manifest ({error}): {ADVICE}") from error
    problem = _problem(body)
    if problem is not None:
        raise StoreCorrupt(f"{path} is not a manifest that openwafer wrote: {problem}; {ADVICE}")
    return body


def _header(text: bytes, path: Path) -> tuple[Any, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{path} is not a manifest ({error}): {ADVICE}") from error
    if not isinstance(header, dict) or "format" not in header:
        raise StoreCorrupt(f"{path} is not a manifest (no format in its first line): {ADVICE}")
    return header["format"], header.get("checksum")


def _problem(body: Any) -> str | None:
    """What is wrong with a body, in words."""
    if not isinstance(body, dict):
        return "its body is not an object"
    if not isinstance(body.get("state"), dict):
        return "'state' is not an object"
    if not isinstance(body.get("pages"), list):
        return "'pages' is not a list"
    for number, entry in enumerate(body["pages"]):
        problem = _page_problem(number, entry)
        if problem is not None:
            return f"page {number}: {problem}"
    return _buffers_problem(body.get("buffers"))


def _page_problem(number: int, entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return "not an object"
    for key in ("name", "layout"):
        if not isinstance(entry.get(key), str):
            return f"{key!r} is not a string"
    slot, file = entry.get("slot"), entry.get("file")
    if slot not in SLOTS:
        return f"slot {slot!r} is neither 'a' nor 'b'"
    if file != page_file(number, slot):
        return f"file {file!r} should be {page_file(number, slot)!r}"
    sums = entry.get("sums")
    if not isinstance(sums, dict) or not all(isinstance(text, str) for text in sums.values()):
        return "'sums' is not a table of strings"
    return None


def _buffers_problem(entry: Any) -> str | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        return "'buffers' is not an object"
    if entry.get("file") not in BUFFERS:
        return f"buffers in {entry.get('file')!r}, which should be one of {', '.join(BUFFERS)}"
    if type(entry.get("bytes")) is not int or entry["bytes"] < 0 or type(entry.get("checksum")) is not int:
        return "'bytes' and 'checksum' of the buffers are not counts"
    return None


def encode_sums(sums: np.ndarray) -> str:
    """Checksums as text, 8 bytes each, little-endian."""
    return base64.b64encode(sums.astype("<u8").tobytes()).decode()


def decode_sums(text: str, count: int) -> np.ndarray:
    """The checksums again.

    Raises:
        ValueError: not the text of `count` checksums.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from error
    if len(raw) != 8 * count:
        raise ValueError(f"{len(raw)} bytes of checksums, {8 * count} are needed")
    return np.frombuffer(raw, dtype="<u8").astype(np.uint64)
