"""Safetensors files, a tensor at a time: reading checks everything before it trusts it, writing needs no list ahead.

A file is 8 bytes of length, a JSON header of so many bytes that names dtype, shape and place of every tensor, then the
bytes. Nothing in it is code. The writer leaves room for the header and fills it when the file is closed. Source: the
format's own description, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openwafer.base.errors import CheckpointError

HEADER_BYTES_MOST = 100_000_000
"""A longer header is refused, as the format's own library does."""

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_HEADER_BYTES_PER_TENSOR = 256


@dataclass(frozen=True)
class Place:
    """Where a tensor is: bytes [begin, end) of the data part."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file; `places` says what is in it."""

    def __init__(self, path: Path):
        """Open and check a file.

        Raises:
            CheckpointError: it is not a whole, well-formed safetensors file.
        """
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"cannot open {path}: {error.strerror}") from error
        try:
            size = os.fstat(self._file.fileno()).st_size
            header_bytes = self._header_bytes(size)
            self._data = 8 + header_bytes
            self.places = _places(path, self._header(header_bytes), size - self._data)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> torch.Tensor:
        """The tensor, in memory of its own."""
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        if place.end > place.begin:
            self._pread(_bytes(tensor), self._data + place.begin)
        return tensor

    def close(self) -> None:
        self._file.close()

    def _pread(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{self.path} ended while it was read; was it changed?")
            done += count
        os.posix_fadvise(self._file.fileno(), offset, len(buffer), os.POSIX_FADV_DONTNEED)

    def _header_bytes(self, size: int) -> int:
        if size < 8:
            raise CheckpointError(f"{self.path} has {size} bytes; a safetensors file has at least 8: it is truncated")
        length = bytearray(8)
        self._pread(memoryview(length), 0)
        if length[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise CheckpointError(
                f"{self.path} is a pickle or a zip archive under another name, not safetensors; it is not opened, "
                "because loading it could run code"
            )
        header_bytes = int.from_bytes(length, "little")
        if header_bytes > HEADER_BYTES_MOST:
            raise CheckpointError(
                f"{self.path} announces a header of {header_bytes} bytes; at most {HEADER_BYTES_MOST} are taken: "
                "it is no safetensors file"
            )
        if header_bytes > size - 8:
            raise CheckpointError(
                f"{self.path} announces a header of {header_bytes} bytes, but only {size - 8} follow: it is truncated"
            )
        return header_bytes

    def _header(self, header_bytes: int) -> dict[str, Any]:
        text = bytearray(header_bytes)
        self._pread(memoryview(text), 8)
        return parse_json(text, f"the header of {self.path}")


def parse_json(text: bytes | bytearray, what: str) -> dict[str, Any]:
    """A JSON object in which no key comes twice.

    Raises:
        CheckpointError: it is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CheckpointError(f"{what} names {twice!r} twice")
        return result

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is a JSON {type(value).__name__}; it must be an object")
    return value


def _places(path: Path, header: dict[str, Any], data_bytes: int) -> dict[str, Place]:
    places = {name: _place(path, name, entry) for name, entry in header.items() if name != "__metadata__"}
    end = 0
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != end:
            raise CheckpointError(f"{path}: tensor {name!r} begins at byte {place.begin}, the one before ends at {end}")
        end = place.end
    if end != data_bytes:
        what = "it is truncated" if end > data_bytes else "the rest belongs to no tensor"
        raise CheckpointError(f"{path}: its tensors take {end} bytes, the file has {data_bytes}: {what}")
    return places


def _place(path: Path, name: str, entry: Any) -> Place:
    try:
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("sizes and offsets must be whole numbers, not negative")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the entry of tensor {name!r} is not understood: {entry!r:.200}") from error
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path}: tensor {name!r} of shape {list(shape)} and {entry['dtype']} takes "
            f"{math.prod(shape) * dtype.itemsize} bytes, but {end - begin} are given to it"
        )
    return Place(dtype, shape, begin, end)


class SafetensorsWriter:
    """Writes tensors into `model-00001-of-00003.safetensors` and so on, one after the other, with the index.

    Args:
        folder: must exist.
        num_tensors: how many will come at most; the room for a file's header follows from it.
        shard_bytes: a file is closed before it would pass so many bytes of data.
    """

    def __init__(self, folder: Path, num_tensors: int, shard_bytes: int):
        self._folder = folder
        self._header_bytes = -(-_HEADER_BYTES_PER_TENSOR * (num_tensors + 1) // 4096) * 4096
        self._shard_bytes = shard_bytes
        self._shards: list[dict[str, Place]] = []
        self._file: Any = None

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor. It is contiguous in the file; a copy is made only where it is not so in memory."""
        tensor = tensor.detach().contiguous().cpu()
        if self._file is not None and self._end() + tensor.nbytes > self._shard_bytes:
            self._close_shard()
        if self._file is None:
            self._shards.append({})
            self._file = (self._folder / f".{len(self._shards):05d}").open("wb", buffering=0)
            self._file.seek(8 + self._header_bytes)
        begin = self._end()
        self._shards[-1][name] = Place(tensor.dtype, tuple(tensor.shape), begin, begin + tensor.nbytes)
        if tensor.nbytes:
            self._write(_bytes(tensor))

    def close(self) -> None:
        """Finish the files and write the index; a single file has none."""
        if self._file is not None:
            self._close_shard()
        names = list(shard_names(len(self._shards)))
        for number, name in enumerate(names):
            os.rename(self._folder / f".{number + 1:05d}", self._folder / name)
        if len(names) <= 1:
            return
        weight_map = {tensor: name for name, shard in zip(names, self._shards, strict=True) for tensor in shard}
        total = sum(place.end - place.begin for shard in self._shards for place in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def abandon(self) -> None:
        """Close the file that is open; what was written is the caller's to remove."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end(self) -> int:
        return max((place.end for place in self._shards[-1].values()), default=0)

    def _close_shard(self) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, place in self._shards[-1].items():
            offsets = [place.begin, place.end]
            header[name] = {"dtype": _CODES[place.dtype], "shape": list(place.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode().ljust(self._header_bytes)
        assert len(text) == self._header_bytes, "names are longer than the room left for them"
        self._file.seek(0)
        self._write(memoryview(self._header_bytes.to_bytes(8, "little") + text))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[self._file.write(data) :]


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data


def shard_names(count: int) -> Iterator[str]:
    """Names of the files of a model in so many parts."""
    if count == 1:
        yield "model.safetensors"
        return
    for number in range(count):
        yield f"model-{number + 1:05d}-of-{count:05d}.safetensors"
