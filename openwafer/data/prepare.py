"""Text to token shards: read, tokenise, pack, in bounded memory whatever the size of the input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from openwafer.base.errors import ConfigError, DataError
from openwafer.data.chat import ChatEncoder, Template, parse_conversation
from openwafer.data.hdf5_writer import FILE_BYTES, Form, Hdf5Record, Hdf5Writer
from openwafer.data.index import INDEX_FILE, TOKENIZER_FILE, Index, SourceRecord, dtype_for
from openwafer.data.shards import TokenShards
from openwafer.data.sources import PIECE_BYTES, Counts, Piece, Source, find_sources, read_lines, read_pieces
from openwafer.data.tokenizer import end_of_text_id, fingerprint, load_tokenizer, plain_tokenizer, train_tokenizer
from openwafer.data.writer import SHARD_BYTES, ShardWriter, atomic_folder, write_synced

VOCAB_SIZE = 50257
"""Of a tokenizer trained here: as GPT-2 and Cerebras-GPT."""

TRAIN_BYTES = 64 << 20
"""A tokenizer is trained on about this much text, taken evenly from the input, so that its word table is bounded."""

_BATCH_DOCUMENTS = 4096

Append = Callable[[np.ndarray, bool], None]
"""Takes the next tokens [n] of a document, and whether it ends with them."""


@dataclass(frozen=True)
class Progress:
    """How far a preparation is. `done_bytes` of `total_bytes` of input files are read in this phase."""

    phase: str
    done_bytes: int
    total_bytes: int
    num_documents: int
    num_tokens: int


def prepare(
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    tokenizer: str | os.PathLike | Tokenizer | None = None,
    vocab_size: int = VOCAB_SIZE,
    text_field: str = "text",
    append_eot: bool = True,
    eot_token: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[Progress], object] | None = None,
) -> TokenShards:
    """Turn text files, JSON lines, parquet files or folders of them into packed token shards.

    `out` appears when everything in it is complete and on the disk, or not at all.

    Args:
        inputs: files and folders, read in this order.
        out: folder to make; it must not exist.
        tokenizer: a tokenizer, or the path of a tokenizer.json; None trains a byte-level BPE on the input.
        vocab_size: of a tokenizer trained here; little text gives fewer.
        text_field: field of JSON lines, column of parquet files.
        append_eot: put the end-of-text token after every document.
        eot_token: that token, for a tokenizer whose own is not one of the usual names.
        shard_bytes: largest size of a shard file.
        progress: called after every batch of documents.

    Returns:
        The shards, opened.

    Raises:
        DataError: an input is missing, unreadable, empty or malformed; `out` exists; the disk is full.
        ConfigError: vocab_size is too small.
    """
    out = Path(os.path.abspath(out))
    counts = Counts()
    report = _Reporter(progress)
    with atomic_folder(out) as partial:
        sources = find_sources(inputs, counts)
        tokenizer = _tokenizer(tokenizer, sources, text_field, vocab_size, report)
        eot_id = end_of_text_id(tokenizer, eot_token) if append_eot else None
        vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        dtype = dtype_for(vocab_size)
        writer = ShardWriter(partial, np.dtype(dtype).newbyteorder("<"), shard_bytes)
        try:
            num_documents = _encode(sources, text_field, tokenizer, eot_id, _append_to(writer), counts, report)
            writer.close()
        except BaseException:
            writer.abort()
            raise
        if not writer.num_tokens:
            raise DataError(f"the {len(sources)} input files hold no text; there is nothing to train on")
        tokenizer_json = tokenizer.to_str()
        index = Index(
            dtype=dtype,
            vocab_size=vocab_size,
            eot_token_id=eot_id,
            num_tokens=writer.num_tokens,
            num_documents=num_documents,
            num_replaced_characters=counts.replaced_characters,
            num_skipped_files=len(counts.skipped_files),
            tokenizer_xxh3_128=fingerprint(tokenizer_json),
            shards=writer.shards,
            sources=[SourceRecord(path=str(source.path), size_bytes=source.size_bytes) for source in sources],
        )
        write_synced(partial / TOKENIZER_FILE, tokenizer_json)
        write_synced(partial / INDEX_FILE, index.model_dump_json(indent=1))
    return TokenShards(out)


def prepare_hdf5(
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    form: Form,
    sequence_length: int | None = None,
    tokenizer: str | os.PathLike | Tokenizer | None = None,
    vocab_size: int = VOCAB_SIZE,
    text_field: str = "text",
    append_eot: bool = True,
    eot_token: str | None = None,
    template: Template | None = None,
    file_bytes: int = FILE_BYTES,
    progress: Callable[[Progress], object] | None = None,
) -> Hdf5Record:
    """As `prepare`, into ModelZoo's HDF5 forms, with index.json and tokenizer.json beside the files.

    Args:
        form: "corpus", "sample" or "packed".
        sequence_length: of the samples; None for a corpus.
        template: the inputs are conversations (.jsonl), written by it; each has a sample to itself, or shares a packed
            one, and only the assistant's turns are learned.

    Returns:
        What index.json says.

    Raises:
        DataError, ConfigError: as `prepare`; or conversations in a corpus, which has no loss mask.
    """
    if template is not None and form == "corpus":
        raise ConfigError("a corpus has no loss mask, which conversations need: take the form sample or packed")
    out = Path(os.path.abspath(out))
    counts, report = Counts(), _Reporter(progress)
    with atomic_folder(out) as partial:
        sources = find_sources(inputs, counts)
        if template is not None and tokenizer is None:
            raise ConfigError("conversations need a tokenizer that has the template's tokens: name one")
        tokenizer = _tokenizer(tokenizer, sources, text_field, vocab_size, report)
        eot_id = end_of_text_id(tokenizer, eot_token) if append_eot and template is None else None
        writer = Hdf5Writer(partial, form, sequence_length, file_bytes, apart=template is not None)
        try:
            if template is None:
                num_documents = _encode(sources, text_field, tokenizer, eot_id, writer.append_piece, counts, report)
            else:
                num_documents = _encode_chats(sources, ChatEncoder(tokenizer, template), writer, counts, report)
            writer.close()
        except BaseException:
            writer.abort()
            raise
        if not writer.num_files:
            raise DataError(f"the {len(sources)} input files hold nothing to train on")
        record = Hdf5Record(
            form=form,
            sequence_length=sequence_length,
            vocab_size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
            eot_token_id=eot_id,
            num_tokens=writer.num_tokens,
            num_samples=writer.num_samples,
            num_documents=num_documents,
            num_files=writer.num_files,
            num_replaced_characters=counts.replaced_characters,
            num_skipped_files=len(counts.skipped_files),
        )
        write_synced(partial / TOKENIZER_FILE, tokenizer.to_str())
        write_synced(partial / INDEX_FILE, record.model_dump_json(indent=1))
    return record


def _tokenizer(
    tokenizer: str | os.PathLike | Tokenizer | None,
    sources: list[Source],
    text_field: str,
    vocab_size: int,
    report: _Reporter,
) -> Tokenizer:
    if isinstance(tokenizer, Tokenizer):
        return plain_tokenizer(tokenizer)
    if tokenizer is not None:
        return load_tokenizer(tokenizer)
    return _train(sources, text_field, vocab_size, report)


def _append_to(writer: ShardWriter) -> Append:
    return lambda tokens, last: writer.append(tokens)


def _encode_chats(
    sources: list[Source], encoder: ChatEncoder, writer: Hdf5Writer, counts: Counts, report: _Reporter
) -> int:
    """Write every conversation; returns their number."""
    total = sum(source.size_bytes for source in sources)
    before, number = 0, 0
    for source in sources:
        for line, where, read_bytes in read_lines(source, counts):
            ids, mask = encoder.encode(parse_conversation(line, where), where)
            writer.append(ids, mask)
            number += 1
            if number % 256 == 0:
                report("tokenise", before + read_bytes, total, number, writer.num_tokens)
        before += source.size_bytes
    report("tokenise", total, total, number, writer.num_tokens)
    return number


class _Reporter:
    """Adds up what is read and hands it to the caller's callback."""

    def __init__(self, callback: Callable[[Progress], object] | None):
        self._callback = callback

    def __call__(self, phase: str, done: int, total: int, num_documents: int = 0, num_tokens: int = 0) -> None:
        if self._callback is not None:
            self._callback(Progress(phase, done, total, num_documents, num_tokens))


def _all_pieces(sources: list[Source], text_field: str, counts: Counts) -> Iterator[tuple[Piece, int]]:
    """Every piece, with the input bytes behind it in all files so far."""
    before = 0
    for source in sources:
        for piece in read_pieces(source, text_field, counts):
            yield piece, before + min(piece.read_bytes, source.size_bytes)
        before += source.size_bytes


def _train(sources: list[Source], text_field: str, vocab_size: int, report: _Reporter) -> Tokenizer:
    total = sum(source.size_bytes for source in sources)

    def sample() -> Iterator[str]:
        taken = 0
        for piece, done in _all_pieces(sources, text_field, Counts()):
            report("train tokenizer", done, total)
            # Evenly over the input: the sample is never further ahead than the reading.
            if taken <= TRAIN_BYTES * done // max(total, TRAIN_BYTES):
                taken += len(piece.text)
                yield piece.text

    return train_tokenizer(sample(), vocab_size)


def _encode(
    sources: list[Source],
    text_field: str,
    tokenizer: Tokenizer,
    eot_id: int | None,
    append: Append,
    counts: Counts,
    report: _Reporter,
) -> int:
    """Tokenise everything and append everything; returns the number of documents."""
    total = sum(source.size_bytes for source in sources)
    # Enough pieces at a time for every core; the encodings take some 100 bytes a token.
    batch_bytes = PIECE_BYTES * min(32, max(4, 2 * (os.cpu_count() or 1)))
    num_documents, num_tokens, size, batch = 0, 0, 0, []

    def flush(done: int) -> None:
        nonlocal num_documents, num_tokens, size, batch
        encodings = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        for piece, encoding in zip(batch, encodings, strict=True):
            ids = encoding.ids
            if piece.last and eot_id is not None:
                ids.append(eot_id)
            append(np.array(ids, dtype=np.uint32), piece.last)
            num_tokens += len(ids)
            num_documents += piece.last
        size, batch = 0, []
        report("tokenise", done, total, num_documents, num_tokens)

    for piece, done in _all_pieces(sources, text_field, counts):
        batch.append(piece)
        size += len(piece.text)
        if size >= batch_bytes or len(batch) >= _BATCH_DOCUMENTS:
            flush(done)
    flush(total)
    return num_documents
