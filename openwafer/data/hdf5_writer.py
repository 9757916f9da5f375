"""Writes ModelZoo's HDF5 forms, as `hdf5` reads them: corpus, sample, and packed samples.

Windows of the sample form overlap by one token, so every token but the first is a label once. In the packed form a
sample holds whole documents, first come first served; a longer document is cut. Padding has id 0 and loss mask 0.
Source of the forms: ModelZoo 2.10, documentation of its data preprocessing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from openwafer.base.errors import ConfigError
from openwafer.data.hdf5 import DATASET, import_h5py

Form = Literal["corpus", "sample", "packed"]
FORMS: tuple[Form, ...] = ("corpus", "sample", "packed")

FILE_BYTES = 256 << 20
_DTYPE = np.dtype("<i4")
_BUFFER_ROWS = 256


class Hdf5Record(BaseModel):
    """What index.json says of a folder of HDF5 files; the files say the rest themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["openwafer-hdf5"] = "openwafer-hdf5"
    version: Literal[1] = 1
    form: Form
    sequence_length: int | None
    vocab_size: int
    eot_token_id: int | None
    num_tokens: int
    num_samples: int
    num_documents: int
    num_files: int
    num_replaced_characters: int
    num_skipped_files: int


class Hdf5Writer:
    """Appends documents; writes files of about `file_bytes` each.

    Args:
        folder: where to; it must exist.
        form: "corpus", "sample" or "packed".
        sequence_length: T; not for the corpus form.
        apart: in the sample form, every document has samples of its own.

    Raises:
        ConfigError: sequence_length is missing, or given for a corpus.
        DataError: h5py is not installed.
    """

    def __init__(
        self,
        folder: Path,
        form: Form,
        sequence_length: int | None = None,
        file_bytes: int = FILE_BYTES,
        apart: bool = False,
    ):
        if (form == "corpus") != (sequence_length is None):
            need = "has none: it is cut when it is read" if form == "corpus" else "needs one"
            raise ConfigError(f"the {form} form {need}; sequence_length is {sequence_length}")
        self._h5py = import_h5py()
        self._apart = apart
        self._folder, self.form, self.sequence_length = folder, form, sequence_length
        self._row_shape = {"corpus": (), "sample": (3, sequence_length), "packed": (5, sequence_length)}[form]
        self._capacity = max(1, file_bytes // (_DTYPE.itemsize * int(np.prod(self._row_shape or (1,)))))
        self._rows: list[np.ndarray] = []
        self._tokens = np.empty(0, np.int64)
        self._mask = np.empty(0, np.int64)
        self._bin: list[tuple[np.ndarray, np.ndarray]] = []
        self._data: Any = None
        self.num_tokens = self.num_samples = self.num_files = 0

    def append(self, tokens: np.ndarray, mask: np.ndarray | None = None, last: bool = True) -> None:
        """Add tokens [n] of a document, `last` with its end; `mask` [n] is 1 where a token is to be learned."""
        self.num_tokens += len(tokens)
        self._tokens = np.concatenate([self._tokens, tokens.astype(np.int64)])
        given = np.ones(len(tokens), np.int64) if mask is None else mask.astype(np.int64)
        self._mask = np.concatenate([self._mask, given])
        if self.form == "corpus":
            self._put(self._tokens)
            self._tokens = self._mask = np.empty(0, np.int64)
        elif self.form == "sample" and not self._apart:
            self._cut_windows()
        elif last:
            self._pack()

    def append_piece(self, tokens: np.ndarray, last: bool) -> None:
        """As `append`, every token to be learned."""
        self.append(tokens, last=last)

    def close(self) -> None:
        """Write what is left, and end the file."""
        if self.form == "sample" and len(self._tokens) > 1:
            self._put_sample([(self._tokens, self._mask)])
        if self._bin:
            self._put_sample(self._bin)
        self._flush()
        self._end_file()
        self._tokens = self._mask = np.empty(0, np.int64)
        self._bin = []

    def abort(self) -> None:
        """Let go of the file; the folder is about to be removed."""
        if self._data is not None:
            self._data.file.close()
            self._data = None

    def _cut_windows(self) -> None:
        assert self.sequence_length is not None
        start, length = 0, self.sequence_length
        while len(self._tokens) - start > length:
            window = slice(start, start + length + 1)
            self._put_sample([(self._tokens[window], self._mask[window])])
            start += length
        self._tokens, self._mask = self._tokens[start:], self._mask[start:]

    def _pack(self) -> None:
        """Put the finished document into the open sample, or begin another one with it."""
        assert self.sequence_length is not None
        length = self.sequence_length
        for start in range(0, max(0, len(self._tokens) - 1), length):
            part = slice(start, start + length + 1)
            piece = (self._tokens[part], self._mask[part])
            used = sum(len(tokens) - 1 for tokens, _ in self._bin)
            if self._bin and (self.form == "sample" or used + len(piece[0]) - 1 > length):
                self._put_sample(self._bin)
                self._bin = []
            self._bin.append(piece)
        self._tokens = self._mask = np.empty(0, np.int64)

    def _put_sample(self, documents: list[tuple[np.ndarray, np.ndarray]]) -> None:
        sample = np.zeros(self._row_shape, np.int64)
        place = 0
        for tokens, mask in documents:
            count = len(tokens) - 1
            here = slice(place, place + count)
            rows = [tokens[:-1], mask[1:], tokens[1:], np.arange(count)[::-1], np.arange(count)]
            for number, values in enumerate(rows[: len(sample)]):
                sample[number, here] = values
            place += count
        self._put(sample[None])

    def _put(self, rows: np.ndarray) -> None:
        self._rows.append(rows.astype(_DTYPE))
        self.num_samples += 0 if self.form == "corpus" else len(rows)
        if sum(map(len, self._rows)) >= (_BUFFER_ROWS if self._row_shape else 1 << 20):
            self._flush()

    def _flush(self) -> None:
        rows = np.concatenate(self._rows) if self._rows else np.empty((0, *self._row_shape), _DTYPE)
        self._rows = []
        while len(rows):
            if self._data is None:
                self._data = self._begin_file()
            held = len(self._data)
            part, rows = rows[: self._capacity - held], rows[self._capacity - held :]
            self._data.resize(held + len(part), axis=0)
            self._data[held:] = part
            if len(self._data) == self._capacity:
                self._end_file()

    def _begin_file(self) -> Any:
        file = self._h5py.File(self._folder / f"data-{self.num_files:05d}.h5", "w", locking=False)
        self.num_files += 1
        chunks = (1, *self._row_shape) if self._row_shape else (min(1 << 16, self._capacity),)
        shape, most = (0, *self._row_shape), (None, *self._row_shape)
        return file.create_dataset(DATASET, shape, _DTYPE, maxshape=most, chunks=chunks)

    def _end_file(self) -> None:
        if self._data is None:
            return
        path = Path(self._data.file.filename)
        self._data.file.close()
        self._data = None
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
