"""Input files to documents, in bounded memory: text, JSON lines, parquet; plain, gzip, bzip2 or xz.

A text file is one document. A long document comes in pieces, cut at line ends where it has any. Bytes that are not
UTF-8 become U+FFFD and are counted. Formats go by file name; nothing is guessed from content, except that a folder's
binary files are left out.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from openwafer.base.errors import DataError

PIECE_BYTES = 1 << 18
"""Size of a piece of a long document."""

_MAX_LINE_BYTES = 1 << 28
"""A longer JSON line is refused: it would be held whole."""

_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_UNSUPPORTED = (".zst", ".zip", ".7z", ".tar", ".tgz")
_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = ".parquet"
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class Piece:
    """Part of a document; `last` on its final one. `read_bytes` of the file on disk lie behind it."""

    text: str
    last: bool
    read_bytes: int


@dataclass
class Counts:
    """What the readers met on the way."""

    replaced_characters: int = 0
    skipped_files: list[str] = field(default_factory=list)


def find_sources(inputs: Sequence[str | os.PathLike], counts: Counts) -> list[Source]:
    """The files named by `inputs`, in that order; a folder stands for its files, recursively, sorted by path.

    Inside a folder hidden files and folders are left out, and so are binary ones, which are named in `counts`.

    Raises:
        DataError: nothing there, not readable, not a file or folder, binary or packed in an unknown way.
    """
    if not inputs:
        raise DataError("no input was named; name at least one text, .jsonl or .parquet file, or a folder of them")
    sources: list[Source] = []
    for path in map(Path, inputs):
        if path.is_dir():
            sources += _in_folder(path, counts)
        elif path.is_file():
            sources.append(_source(path))
            _refuse_unreadable(path)
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder; name text, .jsonl or .parquet files, or folders")
        else:
            raise DataError(f"{path} does not exist; check the name (relative to {Path.cwd()})")
    if not sources:
        raise DataError(f"no usable file in {', '.join(map(str, inputs))}: hidden and binary files do not count")
    if not any(source.size_bytes for source in sources):
        raise DataError(f"all {len(sources)} input files are empty; there is nothing to train on")
    return sources


def read_pieces(source: Source, text_field: str, counts: Counts) -> Iterator[Piece]:
    """The documents of one file, in order, in pieces.

    Raises:
        DataError: not readable, a line that is not a JSON object with a string in `text_field` (as file:line), a
            damaged archive or parquet file, or pyarrow is needed and not installed.
    """
    suffix = _content_suffix(source.path)
    reader = _text_pieces
    if suffix in _JSON_LINES:
        reader = _json_pieces
    if suffix == _PARQUET:
        reader = _parquet_pieces
    try:
        yield from reader(source, text_field, counts)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {source.path}: {error}") from error


def read_lines(source: Source, counts: Counts) -> Iterator[tuple[str, str, int]]:
    """The JSON lines of one file that are not blank, each with its file:line and the bytes read so far.

    Raises:
        DataError: not a file of JSON lines, or not readable.
    """
    if _content_suffix(source.path) not in _JSON_LINES:
        raise DataError(f"{source.path}: conversations are read from JSON lines, {' or '.join(_JSON_LINES)} files")
    try:
        yield from _lines(source, counts)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {source.path}: {error}") from error


def _in_folder(folder: Path, counts: Counts) -> list[Source]:
    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read folder {error.filename}: {error.strerror}") from error

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    sources = []
    for path in sorted(path for path in found if path.is_file()):
        if _is_binary(path):
            counts.skipped_files.append(str(path))
        else:
            sources.append(_source(path))
    return sources


def _source(path: Path) -> Source:
    return Source(path, path.stat().st_size)


def _content_suffix(path: Path) -> str:
    """The suffix that tells the format: that of a.jsonl.gz is .jsonl."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _open(path: Path) -> IO[bytes]:
    return _OPENERS.get(path.suffix.lower(), open)(path, "rb")


def _is_binary(path: Path) -> bool:
    """Whether it is in no format we read: a NUL byte near the start, or an archive of an unknown kind."""
    if path.suffix.lower() in _UNSUPPORTED:
        return True
    if _content_suffix(path) == _PARQUET:
        return False
    try:
        with _open(path) as file:
            return b"\0" in file.read(8192)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _refuse_unreadable(path: Path) -> None:
    if path.suffix.lower() in _UNSUPPORTED:
        raise DataError(
            f"{path} is a {path.suffix} archive, which is not read here; unpack it first (.gz, .bz2 and .xz are read)"
        )
    if _is_binary(path):
        raise DataError(f"{path} is not text: it has a NUL byte near its start; inputs are text, .jsonl or .parquet")


def _text_pieces(source: Source, text_field: str, counts: Counts) -> Iterator[Piece]:
    with open(source.path, "rb") as raw, _unpack(raw, source.path) as file:
        text, rest, first = "", b"", True
        while block := file.read(PIECE_BYTES):
            block = rest + block + file.readline(PIECE_BYTES)
            cut = len(block) - _incomplete_tail(block)
            block, rest = block[:cut], block[cut:]
            if text:
                yield Piece(text, last=False, read_bytes=raw.tell())
            text = _decode(block, counts)
            if first:
                text, first = text.removeprefix(_BYTE_ORDER_MARK), False
        text += _decode(rest, counts)
        if text:
            yield Piece(text, last=True, read_bytes=source.size_bytes)


def _json_pieces(source: Source, text_field: str, counts: Counts) -> Iterator[Piece]:
    for line, where, read_bytes in _lines(source, counts):
        text = _json_text(line, text_field, where)
        yield from _cut(_without_surrogates(text, counts), read_bytes)


def _lines(source: Source, counts: Counts) -> Iterator[tuple[str, str, int]]:
    """Lines that are not blank, each with its file:line and the bytes read so far."""
    with open(source.path, "rb") as raw, _unpack(raw, source.path) as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            where = f"{source.path}:{number}"
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"{where}: the line is longer than {_MAX_LINE_BYTES >> 20} MiB; is this JSON lines?")
            if line.strip():
                yield _decode(line, counts), where, raw.tell()


def _json_text(line: str, text_field: str, where: str) -> str:
    try:
        record = json.loads(line.removeprefix(_BYTE_ORDER_MARK))
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or "too deeply nested"
        raise DataError(
            f"{where}: not valid JSON ({reason}): {line.strip()[:60]!r}; one JSON object per line"
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: a {type(record).__name__}, not an object; each line must be an object with {text_field!r}"
        )
    if not isinstance(record.get(text_field), str):
        what = f"is a {type(record[text_field]).__name__}, not a string" if text_field in record else "is missing"
        raise DataError(
            f"{where}: field {text_field!r} {what}; fields here: {', '.join(record) or 'none'}; see --field"
        )
    return record[text_field]


def _parquet_pieces(source: Source, text_field: str, counts: Counts) -> Iterator[Piece]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError(f"{source.path} needs pyarrow to be read: pip install 'openwafer[parquet]'") from error
    try:
        file = parquet.ParquetFile(source.path)
        column = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True)).get(text_field)
        if column is None or not (arrow.types.is_string(column) or arrow.types.is_large_string(column)):
            what = "is missing" if column is None else f"has type {column}, not string"
            raise DataError(
                f"{source.path}: column {text_field!r} {what}; columns here: "
                f"{', '.join(file.schema_arrow.names) or 'none'}; see --field"
            )
        rows, total = 0, max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=64, columns=[text_field]):
            rows += len(batch)
            for text in batch.column(0).to_pylist():
                if text:
                    yield from _cut(_without_surrogates(text, counts), source.size_bytes * rows // total)
    except arrow.ArrowException as error:
        raise DataError(f"cannot read {source.path}: {error}") from error


def _unpack(raw: IO[bytes], path: Path) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix.lower())
    return opener(raw, "rb") if opener else raw


def _cut(text: str, read_bytes: int) -> Iterator[Piece]:
    """A document's text in pieces of about PIECE_BYTES characters; none when it is empty."""
    start = 0
    while len(text) - start > 2 * PIECE_BYTES:
        end = text.find("\n", start + PIECE_BYTES, start + 2 * PIECE_BYTES) + 1 or start + 2 * PIECE_BYTES
        yield Piece(text[start:end], last=False, read_bytes=read_bytes)
        start = end
    if text:
        yield Piece(text[start:], last=True, read_bytes=read_bytes)


def _decode(data: bytes, counts: Counts) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        counts.replaced_characters += text.count("\ufffd") - data.count("\ufffd".encode())
        return text


def _without_surrogates(text: str, counts: Counts) -> str:
    """JSON can spell half a surrogate pair, which is no character and which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        counts.replaced_characters += clean.count("\ufffd") - text.count("\ufffd")
        return clean
    return text


def _incomplete_tail(data: bytes) -> int:
    """Bytes at the end that begin a UTF-8 character which is not all there."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0
