"""ModelZoo's HDF5 data sets, opened for reading: folders of *.h5 files, each with one dataset `data`.

Forms: "sample" [n, 3, T] holds input ids, loss mask and labels; with two rows more (attention span, position ids) many
documents share a sample (variable-sequence-length packing). "corpus" [tokens] is one stream, cut into windows here.
Files go by name, as ModelZoo sorts them. Nothing outside a file is ever read: links, virtual and external data are
refused. Source of the forms: ModelZoo 2.10, documentation of GptHDF5MapDataProcessor.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from openwafer.base.errors import ConfigError, DataError

DATASET = "data"
_OPEN_FILES = 16
_ROWS_PLAIN, _ROWS_PACKED = 3, 5


def import_h5py() -> Any:
    """The h5py module.

    Raises:
        DataError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("HDF5 data needs h5py: pip install 'openwafer[cerebras]'") from error
    return h5py


class Hdf5Samples:
    """Samples of one or more folders as one sequence.

    Args:
        folders: where the *.h5 files are.
        sequence_length: T, in tokens; needed for the corpus form, otherwise checked against the files.
        subset: parts of the whole as "0.0-0.5" or "0.1-0.3,0.7-1.0", in shares of the samples.

    Raises:
        DataError: no such folder, no file, not HDF5, or files that do not go together.
        ConfigError: sequence_length is missing or another than the data has, or subset is malformed.
    """

    def __init__(
        self, folders: Sequence[str | os.PathLike], sequence_length: int | None = None, subset: str | None = None
    ):
        self._h5py = import_h5py()
        self.files = _find(folders)
        self._open: OrderedDict[Path, Any] = OrderedDict()
        shapes = [self._shape(file) for file in self.files]
        for file, shape in zip(self.files, shapes, strict=True):
            if shape[1:] != shapes[0][1:]:
                raise DataError(
                    f"{file} has data of shape {list(shape)}, {self.files[0]} has {list(shapes[0])}; they must agree"
                )
        self.form: Literal["sample", "corpus"] = "corpus" if len(shapes[0]) == 1 else "sample"
        self.sequence_length = self._length(shapes[0], sequence_length)
        self._ends = list(accumulate(shape[0] for shape in shapes))
        count = (self._ends[-1] - 1) // self.sequence_length if self.form == "corpus" else self._ends[-1]
        self._parts = _ranges(subset, count)
        self._part_ends = list(accumulate(end - start for start, end in self._parts))
        self._num_rows = len(self._slice(0, 1)[0]) if self.form == "sample" else _ROWS_PLAIN
        if not len(self):
            raise DataError(f"{self.files[0].parent} holds no whole sample of {self.sequence_length} tokens")

    def __len__(self) -> int:
        """Number of samples."""
        return self._part_ends[-1]

    @property
    def is_packed(self) -> bool:
        """Whether samples hold several documents, told apart by their position ids."""
        return self._num_rows == _ROWS_PACKED

    @property
    def fingerprint(self) -> str:
        """XXH3-128 over names, shapes and the ends of every file: another data set has another; not a checksum."""
        digest = xxhash.xxh3_128(f"{self.form} {self.sequence_length} {self._parts}".encode())
        for file in self.files:
            data = self._dataset(file)
            digest.update(f"{file.name} {data.shape} {data.dtype}".encode())
            for part in (data[:1024], data[-1024:]) if self.form == "corpus" else (data[0], data[-1]):
                digest.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def read(self, index: int) -> np.ndarray:
        """Sample `index` as int64 [3 or 5, T]: input ids, loss mask, labels, and attention span and position ids.

        Raises:
            IndexError: outside the samples there are.
            DataError: the file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is outside the {len(self)} there are")
        part = bisect_right(self._part_ends, index)
        index = self._parts[part][1] - (self._part_ends[part] - index)
        if self.form == "sample":
            return self._slice(index, index + 1)[0]
        tokens = self._slice(index * self.sequence_length, (index + 1) * self.sequence_length + 1)
        return np.stack([tokens[:-1], np.ones(self.sequence_length, np.int64), tokens[1:]])

    def _slice(self, start: int, end: int) -> np.ndarray:
        parts = []
        number = bisect_right(self._ends, start)
        while start < end:
            first = self._ends[number - 1] if number else 0
            stop = min(end, self._ends[number])
            file = self.files[number]
            try:
                parts.append(self._dataset(file)[start - first : stop - first].astype(np.int64))
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise DataError(f"cannot read {file}: {error}") from error
            start, number = stop, number + 1
        return np.concatenate(parts)

    def _length(self, shape: tuple[int, ...], wanted: int | None) -> int:
        if self.form == "corpus":
            if wanted is None:
                raise ConfigError(
                    f"{self.files[0].parent} holds a stream of tokens (corpus form): say how long a sample is, with "
                    "max_sequence_length in a trainer file, data.sequence_length otherwise"
                )
            return wanted
        if len(shape) != 3 or shape[1] not in (_ROWS_PLAIN, _ROWS_PACKED):
            raise DataError(
                f"{self.files[0]} has data of shape {list(shape)}; [n, 3, T] (ids, loss mask, labels), [n, 5, T] "
                "(packed) and [tokens] (corpus) are read"
            )
        if wanted not in (None, shape[2]):
            raise ConfigError(f"{self.files[0]} has samples of {shape[2]} tokens, the configuration says {wanted}")
        return shape[2]

    def _shape(self, file: Path) -> tuple[int, ...]:
        data = self._dataset(file)
        if data.dtype.kind not in "iu" or data.ndim not in (1, 3) or not data.shape[0]:
            raise DataError(f"{file}: data is {data.dtype} {list(data.shape)}; integers [n, 3, T] or [tokens] are read")
        return data.shape

    def _dataset(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = self._open_file(path)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1].file.close()
        self._open.move_to_end(path)
        return self._open[path]

    def _open_file(self, path: Path) -> Any:
        try:
            file = self._h5py.File(path, "r", locking=False)
        except OSError as error:
            raise DataError(f"{path} is not an HDF5 file that can be read: {error}") from error
        if not isinstance(file.get(DATASET, getlink=True), self._h5py.HardLink):
            raise DataError(f"{path} has no dataset {DATASET!r} of its own; it holds: {', '.join(file) or 'nothing'}")
        data = file[DATASET]
        if not isinstance(data, self._h5py.Dataset) or data.is_virtual or data.external:
            raise DataError(f"{path}: {DATASET!r} is no plain dataset; links to other files are not followed")
        return data

    def close(self) -> None:
        """Let go of the open files; the next read opens them again."""
        while self._open:
            self._open.popitem()[1].file.close()


def _find(folders: Sequence[str | os.PathLike]) -> list[Path]:
    files: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; name one with *.h5 files (relative to {Path.cwd()})")
        files += folder.glob("*.h5")
    if not files:
        raise DataError(f"no *.h5 file in {', '.join(map(str, folders))}")
    return sorted(files)


def _ranges(subset: str | None, count: int) -> list[tuple[int, int]]:
    """[start, end) of the samples that "0.0-0.5" and the like name."""
    if subset is None:
        return [(0, count)]
    ranges = []
    for text in subset.split(","):
        try:
            low, high = (float(part) for part in text.split("-"))
        except ValueError as error:
            raise ConfigError(f"data_subset {subset!r}: {text!r} is not of the form 0.0-0.5") from error
        if not 0 <= low < high <= 1 or (ranges and int(low * count) < ranges[-1][1]):
            raise ConfigError(f"data_subset {subset!r}: shares must rise from 0 to 1 without overlap")
        ranges.append((int(low * count), int(high * count)))
    return ranges
